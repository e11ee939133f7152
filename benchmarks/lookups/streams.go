// Streams: the peer, a program of Kafka Streams whose source is in streams/.

package main

import (
	"context"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tallywire/tallywire/internal/embedded"
)

//go:embed streams/*.java
var streamsSource embed.FS

const streamsPOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tallywire.benchmarks</groupId>
  <artifactId>streams</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-streams</artifactId><version>` + embedded.KafkaVersion + `</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
`

// compile fetches the jars and compiles the program.
func (w *world) compile(ctx context.Context) error {
	dir, err := embedded.Cached("Kafka Streams "+embedded.KafkaVersion+", 100 MB", "streams-"+embedded.KafkaVersion+"-jars", func(into string) error {
		pom := filepath.Join(into, "pom.xml")
		if err := os.WriteFile(pom, []byte(streamsPOM), 0o644); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "mvn", "-q", "-B", "-C", "-f", pom,
			"org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies",
			"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(into, "lib")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("fetching Kafka Streams with Maven: %w\n%s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.libs, w.classes = filepath.Join(dir, "lib", "*"), filepath.Join(w.tmp, "classes")
	if err := os.CopyFS(w.classes, streamsSource); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(w.classes, "streams", "*.java"))
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "javac", append([]string{"-nowarn", "-d", w.classes, "-cp", w.libs}, files...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("compiling the program of Kafka Streams (javac comes with a JDK, version 17 or newer): %w\n%s", err, out)
	}
	return nil
}

// streams starts it with stores of a kind.
func streams(stores string) startFunc {
	return func(ctx context.Context, w *world, name string) (*running, error) {
		r := &running{output: "streams.costed", groups: []string{name}, cost: func(_, value []byte) (int64, error) {
			if len(value) < 8 {
				return 0, errors.New("a value is shorter than a cost")
			}
			return int64(binary.BigEndian.Uint64(value[len(value)-8:])), nil
		}}
		if err := w.create(ctx, partitions, "compact", r.output); err != nil {
			return nil, err
		}
		heap := fmt.Sprintf("%dm", w.o.heap)
		var head int32
		for _, d := range w.data {
			head = d.head
		}
		return r, r.launch(w, name, "java", "-Xms"+heap, "-Xmx"+heap, "-XX:+UseParallelGC", "-cp", w.classes+":"+w.libs, "Costed",
			w.kafka.Addr(), name, r.output, fmt.Sprint(head), filepath.Join(w.tmp, name+"-state"), stores)
	}
}
