// Where Kafka's jars come from.

package embedded

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// KafkaVersion is the Apache Kafka that StartKafka runs.
const KafkaVersion = "4.3.1"

const kafkaPOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tallywire.testkit</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>` + KafkaVersion + `</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>` + KafkaVersion + `</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.4</version></dependency>
  </dependencies>
</project>
`

// KafkaLibs gives the folder of jars, which Maven fetches.
func KafkaLibs(ctx context.Context) (libs string, err error) {
	dir, err := Cached("Apache Kafka "+KafkaVersion+", 55 MB", "kafka-"+KafkaVersion+"-jars", func(into string) error {
		mvn, err := exec.LookPath("mvn")
		if err != nil {
			return errors.New("the jars of Apache Kafka are fetched with the program mvn: install maven")
		}
		pom := filepath.Join(into, "pom.xml")
		if err := os.WriteFile(pom, []byte(kafkaPOM), 0o644); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-C", "-f", pom,
			"org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies",
			"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(into, "lib"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("fetching Kafka's jars with Maven: %w\n%s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	return filepath.Join(dir, "lib"), err
}

// portFree tells a taken port in our words rather than in a JVM's stack trace.
func portFree(addr string) error {
	ln, err := listenTCP(addr)
	if err != nil {
		return fmt.Errorf("the port for Kafka is taken: %w", err)
	}
	return ln.Close()
}

func base64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
