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
	"sidecar/proxy"
	"sidecar/state"
)

// plan is `sidecar plan`: it says what an export would ask of the server, and makes none.
func plan(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var level, group, types, since string
	c, err := loadConfigWith("plan", args, stderr, func(flags *flag.FlagSet) {
		flags.StringVar(&level, "level", "system", "`level` of the export: system, patient or group")
		flags.StringVar(&group, "group", "", "`id` of the Group, for the level group")
		flags.StringVar(&types, "type", "", "comma-separated resource `types`, as in _type; empty means all of the level")
		flags.StringVar(&since, "since", "", "`instant` or date after which changes are wanted, as in _since")
	})
	if err != nil {
		return err
	}
	kickoff, err := plannedKickoff(c, level, group, types, since)
	if err != nil {
		return err
	}
	client, err := newClient(c, nil, nil, nil)
	if err != nil {
		return err
	}
	fmt.Fprintln(stderr, "asking the server, about seventy small requests, and one or two for each type ...")
	if err := checkPlanned(ctx, c, client, kickoff); err != nil {
		return err
	}
	forecast, err := exporter.Foresee(ctx, exporter.Config{
		Client: client, Workers: c.Workers, PageSize: c.PageSize, Settle: c.Settle, Strategy: c.Strategy, WithoutReferenced: !c.Referenced,
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
		if kickoff.Since, err = proxy.ParseBound(since); err != nil {
			return kickoff, fmt.Errorf("-since is %w", err)
		}
	}
	return kickoff, nil
}

// checkPlanned is what a kick-off is checked for, with the sidecar's own credentials in place of a client's.
func checkPlanned(ctx context.Context, c *config, client *fhir.Client, kickoff state.Kickoff) error {
	statement, err := client.Capabilities(ctx)
	if err != nil {
		return err
	}
	if err := proxy.CheckKickoff(kickoff, statement, c.typesOf); err != nil {
		return err
	}
	if kickoff.Level != state.Group {
		return nil
	}
	raw, err := client.Read(ctx, "Group", kickoff.Group)
	if err := proxy.CheckGroup(raw, err); err != nil {
		return fmt.Errorf("-group: %w", err)
	}
	return nil
}

// ways say what the strategies of the table mean.
var ways = []struct{ name, meaning string }{
	{"keyset", "in time windows, each page beginning at the time of the last row"},
	{"bisect", "in time windows that are halved until each fits into one page"},
	{"paging", "through the server's own next links"},
	{exporter.StrategyLists, "members are asked for in lists of ids"},
	{exporter.StrategyPatients, "one Patient after another is asked for"},
	{exporter.StrategyCompartment, "one Patient's compartment after another is searched"},
	{exporter.StrategyHas, "members are asked for by a chained _has"},
}

// forecastTable is the table of a Forecast with what its rows add up to.
type forecastTable struct {
	*tabwriter.Writer
	total      exporter.TypeForecast
	empty      int
	strategies string
}

// printForecast prints a table of the types that have rows, the sums, and what the words and the gaps in it mean.
func printForecast(out io.Writer, kickoff state.Kickoff, f *exporter.Forecast) error {
	fmt.Fprintf(out, "%s export of %s, pages of %d, up to %d requests at once\n", kickoff.Level, orUnknown(f.Software), f.PageSize, f.Workers)
	if f.Members >= 0 {
		fmt.Fprintf(out, "members: %d\n", f.Members)
	}
	table := forecastTable{Writer: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(table, "\ntype\tstrategy\tslices\trows read\trequests\tMB\t")
	for _, typ := range f.Types {
		table.add(typ)
	}
	table.total.Type = "all"
	table.print(table.total)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, way := range ways {
		if strings.Contains(table.strategies, way.name) {
			fmt.Fprintf(out, "%s: %s.\n", way.name, way.meaning)
		}
	}
	if kickoff.Level != state.System {
		fmt.Fprintln(out, "Rows are those read; the export holds what belongs to the Patients among them.")
	}
	if len(f.Referenced) > 0 {
		fmt.Fprintf(out, "Not in the table: what these resources refer to in %s goes along, read by lists of ids.\n", strings.Join(f.Referenced, ", "))
	}
	if table.empty > 0 {
		fmt.Fprintf(out, "%s no rows.\n", has(table.empty, "type"))
	}
	for _, remark := range f.Remarks {
		fmt.Fprintf(out, "Remark: %s.\n", remark)
	}
	printDuration(out, f)
	return nil
}

// add prints a type, and adds it to the sums. What is not known of one type is not known of all.
func (t *forecastTable) add(typ exporter.TypeForecast) {
	if typ.Slices == 0 && typ.Remark == "" {
		t.empty++
		return
	}
	t.print(typ)
	t.strategies += typ.Strategy + " "
	t.total.Slices += typ.Slices
	t.total.Requests += typ.Requests
	sum := func(total *int64, part int64) {
		if part < 0 || *total < 0 {
			*total = -1
			return
		}
		*total += part
	}
	sum(&t.total.Rows, typ.Rows)
	sum(&t.total.Bytes, typ.Bytes)
}

func (t *forecastTable) print(typ exporter.TypeForecast) {
	rows, requests, megabytes := "?", fmt.Sprint(typ.Requests), "?"
	if typ.Rows >= 0 {
		rows = fmt.Sprint(typ.Rows)
	} else {
		requests = "at least " + requests
	}
	if typ.Bytes >= 0 {
		megabytes = fmt.Sprintf("%.1f", float64(typ.Bytes)/1e6)
	}
	fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", typ.Type, typ.Strategy, typ.Slices, rows, requests, megabytes, typ.Remark)
}

// printDuration says how long the requests take, as far as that can be known.
func printDuration(out io.Writer, f *exporter.Forecast) {
	switch {
	case f.PageTime == 0:
		fmt.Fprintln(out, "No page could be read, so how long it takes is not known.")
	case !f.Known():
		fmt.Fprintf(out, "A page takes %s now. The server does not count everything, so how long the export takes is not known; "+
			"the requests above are a lower bound.\n", f.PageTime.Round(100*time.Microsecond))
	case f.Duration() < 6*time.Second:
		fmt.Fprintf(out, "A page takes %s now: less than 0.1 minutes, without what changes meanwhile.\n", f.PageTime.Round(100*time.Microsecond))
	default:
		fmt.Fprintf(out, "A page takes %s now: about %.1f minutes, without what changes meanwhile.\n", f.PageTime.Round(100*time.Microsecond), f.Duration().Minutes())
	}
}

// has says "1 type has" or "2 types have".
func has(n int, what string) string {
	if n == 1 {
		return "1 " + what + " has"
	}
	return fmt.Sprintf("%d %ss have", n, what)
}
