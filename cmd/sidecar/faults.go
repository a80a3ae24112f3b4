package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// faultList collects what is wrong with a configuration, a line each, and knows where each setting stands in the file.
type faultList struct {
	errs []error
	// lines are the lines of the settings in the file, by their names such as bucket.s3.region.
	lines map[string]int
	// faulty are the settings that a fault was found in already: what else is said of them would be false.
	faulty map[string]bool
}

func newFaultList() *faultList { return &faultList{lines: map[string]int{}, faulty: map[string]bool{}} }

// add reports a fault of a setting, unless there is one already.
func (f *faultList) add(key, format string, args ...any) {
	if f.faulty[key] {
		return
	}
	f.faulty[key] = true
	where := ""
	if line := f.lines[key]; line > 0 {
		where = fmt.Sprintf("line %d: ", line)
	}
	f.errs = append(f.errs, fmt.Errorf("  "+where+key+format, args...))
}

// found tells whether a fault of a setting was reported.
func (f *faultList) found(key string) bool { return f.faulty[key] }

// look walks a part of the file beside the type that it is for, and reports values of a wrong form and settings that are
// said twice, of which it keeps the first. Unknown settings are not its concern. unset are values that refer to a variable
// that is not there.
func (f *faultList) look(node *yaml.Node, typ reflect.Type, key string, unset map[*yaml.Node]bool) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch {
	case unset[node]:
		f.faulty[key] = true
	case node.Tag == "!!null":
	case typ.Kind() == reflect.Struct && node.Kind == yaml.MappingNode:
		f.lookInto(node, typ, key, unset)
	case typ.Kind() == reflect.Slice && node.Kind == yaml.SequenceNode:
		for _, one := range node.Content {
			f.look(one, typ.Elem(), key, unset)
		}
	case node.Decode(reflect.New(typ).Interface()) != nil:
		f.add(key, " must be %s", form(typ))
	}
}

func (f *faultList) lookInto(node *yaml.Node, typ reflect.Type, prefix string, unset map[*yaml.Node]bool) {
	kept := node.Content[:0:0]
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		key := strings.TrimPrefix(prefix+"."+name.Value, ".")
		if first := seen[name.Value]; first > 0 {
			f.errs = append(f.errs, fmt.Errorf("  line %d: %s is said twice, first in line %d", name.Line, key, first))
			continue
		}
		seen[name.Value] = name.Line
		kept = append(kept, name, value)
		for n := range typ.NumField() {
			if field := typ.Field(n); field.Tag.Get("yaml") == name.Value {
				f.lines[key] = name.Line
				f.look(value, field.Type, key, unset)
			}
		}
	}
	node.Content = kept
}

// form says how values of a type are written.
func form(typ reflect.Type) string {
	switch {
	case typ == reflect.TypeFor[time.Duration]():
		return "a time such as 5s, 10m or 24h"
	case typ.Kind() == reflect.Bool:
		return "true or false"
	case typ.Kind() == reflect.Int, typ.Kind() == reflect.Int64:
		return "a whole number"
	case typ.Kind() == reflect.Float64:
		return "a number such as 1.1"
	case typ.Kind() == reflect.Slice:
		return "a list"
	case typ.Kind() == reflect.Struct:
		return "a group of settings"
	}
	return "a text"
}
