// A collector made of OpenTelemetry's own parts (its service, its OTLP receiver), with an exporter that a test can read: each message that
// came is one line of OTLP/JSON in DIRECTORY/traces.json or logs.json, written before the sender is answered. While DIRECTORY/refuse says
// `busy` or `never`, it takes nothing, for now (and writes it to DIRECTORY/refusals.json) or for good.
package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
)

type config struct {
	Directory string `mapstructure:"directory"`
}

// One kind of messages, in a file.
type lines struct {
	component.StartFunc
	component.ShutdownFunc
	directory, name string
	writing         sync.Mutex
}

func (l *lines) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (l *lines) write(line []byte, err error) error {
	if err != nil {
		return err
	}
	switch refuse, _ := os.ReadFile(filepath.Join(l.directory, "refuse")); strings.TrimSpace(string(refuse)) {
	case "busy":
		return errors.Join(errors.New("busy, as it was told to be"), l.add("refusals.json", line))
	case "never":
		return consumererror.NewPermanent(errors.New("refused, as it was told to"))
	}
	return l.add(l.name, line)
}

func (l *lines) add(name string, line []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	file, err := os.OpenFile(filepath.Join(l.directory, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(append(line, '\n'))
	return err
}

func (l *lines) ConsumeTraces(_ context.Context, traces ptrace.Traces) error {
	return l.write(new(ptrace.JSONMarshaler).MarshalTraces(traces))
}

func (l *lines) ConsumeLogs(_ context.Context, logs plog.Logs) error {
	return l.write(new(plog.JSONMarshaler).MarshalLogs(logs))
}

func factories() (otelcol.Factories, error) {
	traces := func(_ context.Context, _ exporter.Settings, of component.Config) (exporter.Traces, error) {
		return &lines{directory: of.(*config).Directory, name: "traces.json"}, nil
	}
	logs := func(_ context.Context, _ exporter.Settings, of component.Config) (exporter.Logs, error) {
		return &lines{directory: of.(*config).Directory, name: "logs.json"}, nil
	}
	written := exporter.NewFactory(component.MustNewType("lines"), func() component.Config { return &config{} },
		exporter.WithTraces(traces, component.StabilityLevelStable), exporter.WithLogs(logs, component.StabilityLevelStable))
	receivers, err := otelcol.MakeFactoryMap(otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap(written)
	return otelcol.Factories{Receivers: receivers, Exporters: exporters}, err
}

func main() {
	settings := otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "collector", Description: "OpenTelemetry Collector", Version: "0.124.0"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
			DefaultScheme:     "file",
		}},
	}
	if err := otelcol.NewCommand(settings).Execute(); err != nil {
		os.Exit(1)
	}
}
