package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/state"
)

// plan is `sidecar plan`: it says what an export would ask of the server, and makes none.
func plan(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var level, group, types, since string
	c, err := loadConfigWith("plan", args, stderr, func(flags *flag.FlagSet) {
		flags.StringVar(&level, "level", "system", "`level` of the export: system, patient or group")
		flags.StringVar(&group, "group", "", "`id` of the Group, for the level group")
		flags.StringVar(&types, "type", "", "comma-separated resource `types`, as in _type; empty means all of the level")
		flags.StringVar(&since, "since", "", "`instant` from which on changes are wanted, as in _since")
	})
	if err != nil {
		return err
	}
	kickoff, err := plannedKickoff(c, level, group, types, since)
	if err != nil {
		return err
	}
	client, err := newClient(c, nil)
	if err != nil {
		return err
	}
	forecast, err := exporter.Foresee(ctx, exporter.Config{
		Client: client, Workers: c.Workers, PageSize: c.PageSize, Settle: c.Settle, Strategy: c.Strategy,
		Log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, kickoff)
	if err != nil {
		return err
	}
	return printForecast(stdout, kickoff, forecast)
}

func plannedKickoff(c *config, level, group, types, since string) (state.Kickoff, error) {
	kickoff := state.Kickoff{Level: state.Level(level), Group: group, Base: strings.TrimRight(c.Upstream, "/")}
	switch {
	case !slices.Contains([]state.Level{state.System, state.Patient, state.Group}, kickoff.Level):
		return kickoff, errors.New("-level must be system, patient or group")
	case (kickoff.Level == state.Group) != (group != ""):
		return kickoff, errors.New("-level group and -group ID belong together")
	}
	if types != "" {
		kickoff.Types = strings.Split(types, ",")
		slices.Sort(kickoff.Types)
		kickoff.Types = slices.Compact(kickoff.Types)
	}
	if since != "" {
		var err error
		if kickoff.Since, err = fhir.ParseInstant(since); err != nil {
			return kickoff, fmt.Errorf("-since: %w", err)
		}
	}
	return kickoff, nil
}

// printForecast prints a table of the types that have rows, and the sums.
func printForecast(out io.Writer, kickoff state.Kickoff, f *exporter.Forecast) error {
	fmt.Fprintf(out, "%s export of %s, pages of %d, up to %d requests at once\n", kickoff.Level, orUnknown(f.Software), f.PageSize, f.Workers)
	if f.Members >= 0 {
		fmt.Fprintf(out, "members: %d\n", f.Members)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\ntype\tstrategy\tslices\trows\trequests\tMB\t")
	var slices, empty int
	var rows, requests, bytes int64
	for _, typ := range f.Types {
		if typ.Slices == 0 && typ.Remark == "" {
			empty++
			continue
		}
		count := fmt.Sprint(typ.Rows)
		if typ.Rows < 0 {
			count = "?"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%.1f\t%s\n", typ.Type, typ.Strategy, typ.Slices, count, typ.Requests, float64(typ.Bytes)/1e6, typ.Remark)
		slices, rows, requests, bytes = slices+typ.Slices, rows+max(0, typ.Rows), requests+typ.Requests, bytes+typ.Bytes
	}
	fmt.Fprintf(table, "all\t\t%d\t%d\t%d\t%.1f\t\n", slices, rows, requests, float64(bytes)/1e6)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d types have no rows. A page takes %s now: about %.1f minutes, without what changes meanwhile.\n",
		empty, f.PageTime.Round(time.Millisecond), f.Duration().Minutes())
	return nil
}
