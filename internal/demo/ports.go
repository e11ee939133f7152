// ports.go: every address is looked at before anything starts.

package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrPort says that an address that the demo wants is taken.
var ErrPort = problem.Define("TW-DEMO-PORT", problem.Halt,
	"A port that the demo wants is taken by another program.",
	"Stop that program, or move the demo's part with the flag that the message names.")

// Ports of the demo on 127.0.0.1.
type Ports struct {
	Page, Kafka, Registry, PSA, Warehouse, ERP int
}

// DefaultPorts are those of the README.
var DefaultPorts = Ports{Page: 8080, Kafka: 9092, Registry: 8081, PSA: 5433, Warehouse: 5434, ERP: 8090}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// check finds every port that is taken. A Postgres that a killed demo left on
// its port is ours and will be adopted.
func (p Ports) check(stateDir string) error {
	var errs []error
	used := map[int]string{}
	for _, x := range []struct {
		what, flag, dir string
		port            int
	}{
		{"the page", "--page-port", "", p.Page},
		{"Kafka", "--kafka-port", "", p.Kafka},
		{"the schema registry", "--registry-port", "", p.Registry},
		{"the PSA's Postgres", "--psa-port", "psa", p.PSA},
		{"the warehouse's Postgres", "--warehouse-port", "warehouse", p.Warehouse},
		{"the ERP", "--erp-port", "", p.ERP},
	} {
		if x.port < 1 || x.port > 65535 {
			errs = append(errs, ErrPort.New("%s: %s %d is no port", x.what, x.flag, x.port).WithRemedy("Give %s a number from 1 to 65535.", x.flag))
			continue
		}
		if other, ok := used[x.port]; ok {
			errs = append(errs, ErrPort.New("%s and %s both want port %d", other, x.what, x.port).WithRemedy("Give one of them another with %s.", x.flag))
			continue
		}
		used[x.port] = x.what
		if x.dir != "" && postgresPort(filepath.Join(stateDir, x.dir)) == x.port {
			continue
		}
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", local(x.port))
		if err != nil {
			errs = append(errs, ErrPort.New("%s wants %s, which is taken", x.what, local(x.port)).
				WithRemedy("Stop what uses it (another demo? see `ss -ltnp`), or use %s.", x.flag))
			continue
		}
		if err := ln.Close(); err != nil {
			errs = append(errs, fmt.Errorf("looking at port %d: %w", x.port, err))
		}
	}
	return errors.Join(errs...)
}

// postgresPort is the port that a postmaster wrote into its data folder, 0 if
// there is none.
func postgresPort(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 4 {
		return 0
	}
	port, err := strconv.Atoi(strings.TrimSpace(lines[3]))
	if err != nil {
		return 0
	}
	return port
}
