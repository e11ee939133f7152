// Names of topics: how the topic of a source's table is called, and back.

package change

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// TopicNameOctets is how long a topic's name may be in Kafka.
const TopicNameOctets = 249

// TopicName is the name of the topic of a source's table: its three names with
// points between. Of schema and table, all but ASCII letters, digits, '_' and '-'
// is written as _xHHHH_, the hexadecimal UTF-16 code unit in capitals: two for what
// is beyond U+FFFF, as in "_xD83D__xDE00_". A '_' with which an escape would begin
// that is none is _x005F_. An octet that is no UTF-8 is _xDC80_ to _xDCFF_, a half
// of a pair that does not occur otherwise. It may be too long: see TopicLegal.
func TopicName(source, schema, table string) string {
	return source + "." + escapeTopic(schema) + "." + escapeTopic(table)
}

// ParseTopicName is the inverse of TopicName; ok is false for what it does not give.
func ParseTopicName(topic string) (source, schema, table string, ok bool) {
	parts := strings.Split(topic, ".")
	if len(parts) != 3 {
		return "", "", "", false
	}
	schema, table = unescapeTopic(parts[1]), unescapeTopic(parts[2])
	return parts[0], schema, table, TopicName(parts[0], schema, table) == topic
}

// TopicLegal says what Kafka has against the name of a topic; "": nothing
// (org.apache.kafka.common.internals.Topic).
func TopicLegal(topic string) string {
	switch i := strings.IndexFunc(topic, func(r rune) bool { return r != '.' && !plainInTopic(r) }); {
	case topic == "" || topic == "." || topic == "..":
		return fmt.Sprintf("%q is no name of a topic", topic)
	case i >= 0:
		r, _ := utf8.DecodeRuneInString(topic[i:])
		return fmt.Sprintf("%q has %q, and Kafka takes ASCII letters, digits, '.', '_' and '-' alone", topic, r)
	case len(topic) > TopicNameOctets:
		return fmt.Sprintf("%q has %d octets, and Kafka takes %d", topic, len(topic), TopicNameOctets)
	}
	return ""
}

// TopicFold is the same for names that Kafka does not have beside each other: it
// calls the metrics of a topic by its name with '_' for '.'.
func TopicFold(topic string) string { return strings.ReplaceAll(topic, ".", "_") }

func plainInTopic(r rune) bool {
	return r == '_' || r == '-' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func escapeTopic(s string) string {
	if !strings.Contains(s, "_x") && strings.IndexFunc(s, func(r rune) bool { return !plainInTopic(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, "_x%04X_", 0xDC00+int(s[0]))
		case r == '_' && likeEscape(s):
			b.WriteString("_x005F_")
		case plainInTopic(r):
			b.WriteRune(r)
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&b, "_x%04X_", u)
			}
		}
		s = s[n:]
	}
	return b.String()
}

// escapeOctets is the length of an escape.
const escapeOctets = len("_xHHHH_")

// likeEscape: s begins with what would be read as an escape, once what follows is
// written, which begins with '_' too if it is an escape.
func likeEscape(s string) bool {
	if len(s) < escapeOctets || !strings.HasPrefix(s, "_x") {
		return false
	}
	if _, ok := hex4(s[2:6]); !ok {
		return false
	}
	r, _ := utf8.DecodeRuneInString(s[6:])
	return r == '_' || !plainInTopic(r)
}

// hex4 reads four hexadecimal digits, in capitals.
func hex4(s string) (n rune, ok bool) {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			n = n<<4 | rune(c-'0')
		case c >= 'A' && c <= 'F':
			n = n<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return n, len(s) == 4
}

// unescapeTopic gives anything for what escapeTopic does not give.
func unescapeTopic(s string) string {
	unit := func(s string) (rune, bool) {
		if len(s) < escapeOctets || s[:2] != "_x" || s[6] != '_' {
			return 0, false
		}
		return hex4(s[2:6])
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, ok := unit(s[i:])
		if !ok {
			b.WriteByte(s[i])
			i++
			continue
		}
		i += escapeOctets
		if utf16.IsSurrogate(r) {
			if low, ok := unit(s[i:]); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
				r, i = utf16.DecodeRune(r, low), i+escapeOctets
			} else if r >= 0xDC80 && r <= 0xDCFF {
				b.WriteByte(byte(r - 0xDC00))
				continue
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}
