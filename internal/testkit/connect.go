// Kafka Connect with Debezium's Postgres connector and Apicurio's converters:
// capture as others do it, to be measured beside. The jars come from Maven.

package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tallywire/tallywire/internal/embedded"
)

// DebeziumVersion is the connector that ConnectInstall holds.
const DebeziumVersion = "3.7.0.Final"

// ConnectInstall is an installation of Kafka Connect in the user's cache.
type ConnectInstall struct {
	// Classpath of the worker, for java's -cp.
	Classpath string
	// Plugins is a folder for plugin.path, with the connector and the
	// converters in folders of their own.
	Plugins string
}

// The classes to run.
const (
	ConnectStandalone  = "org.apache.kafka.connect.cli.ConnectStandalone"
	ConnectDistributed = "org.apache.kafka.connect.cli.ConnectDistributed"
)

// artefacts is a folder of jars: what it is made from, and what is left out of
// it because the worker has its own.
type artefacts struct {
	folder       string
	coordinates  []string // group:artefact:version
	groups, jars string   // left out
}

var connectArtefacts = []artefacts{
	{folder: "lib", coordinates: []string{
		"org.apache.kafka:kafka_2.13:" + embedded.KafkaVersion, "org.apache.kafka:connect-runtime:" + embedded.KafkaVersion, "org.apache.kafka:connect-json:" + embedded.KafkaVersion,
		"org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
	}},
	{
		folder: "plugins/debezium", coordinates: []string{"io.debezium:debezium-connector-postgres:" + DebeziumVersion},
		groups: "org.slf4j,org.lz4,at.yawk.lz4,org.xerial.snappy,com.github.luben,jakarta.ws.rs", jars: "connect-api,kafka-clients",
	},
	{
		folder: "plugins/apicurio", coordinates: []string{"io.apicurio:apicurio-registry-utils-converter:" + ApicurioVersion},
		groups: "org.slf4j,org.lz4,org.xerial.snappy,com.github.luben,javax.ws.rs", jars: "connect-api,connect-json,kafka-clients",
	},
}

// ConnectBinaries gives the installation. Maven fetches it once; processes that
// come meanwhile wait.
func ConnectBinaries(ctx context.Context) (*ConnectInstall, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return nil, errors.New("the program java is missing, which Kafka Connect needs, version 17 or newer: install openjdk-17-jre-headless")
	}
	dir, err := embedded.Cached("Kafka Connect, Debezium "+DebeziumVersion+" and their converters, about 200 MB", "connect-"+embedded.KafkaVersion+"-debezium-"+DebeziumVersion+"-apicurio-"+ApicurioVersion, func(into string) error {
		for _, a := range connectArtefacts {
			if err := a.fetch(ctx, into); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ConnectInstall{Classpath: filepath.Join(dir, "lib", "*"), Plugins: filepath.Join(dir, "plugins")}, nil
}

func (a *artefacts) fetch(ctx context.Context, into string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return errors.New("the jars of Kafka Connect and Debezium are fetched with the program mvn: install maven")
	}
	out := filepath.Join(into, a.folder)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var pom strings.Builder
	pom.WriteString(`<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>` +
		`<groupId>tallywire.testkit</groupId><artifactId>connect</artifactId><version>1</version><packaging>pom</packaging><dependencies>`)
	for _, c := range a.coordinates {
		p := strings.Split(c, ":")
		fmt.Fprintf(&pom, "<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>", p[0], p[1], p[2])
	}
	pom.WriteString("</dependencies></project>\n")
	file := filepath.Join(out, "pom.xml")
	if err := os.WriteFile(file, []byte(pom.String()), 0o644); err != nil {
		return err
	}
	args := []string{
		"-q", "-B", "-C", "-f", file, "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory=" + out,
	}
	if a.groups != "" {
		args = append(args, "-DexcludeGroupIds="+a.groups, "-DexcludeArtifactIds="+a.jars)
	}
	if text, err := exec.CommandContext(ctx, mvn, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("fetching %s with Maven: %w\n%s", strings.Join(a.coordinates, ", "), err, strings.TrimSpace(string(text)))
	}
	return os.Remove(file)
}
