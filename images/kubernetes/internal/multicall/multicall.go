// Package multicall makes one program of several: it acts by the name it is called by.
package multicall

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Run calls the command that the program's name stands for. Called by its own name, it takes the command from its first
// argument.
func Run(own string, commands map[string]func()) {
	name := filepath.Base(os.Args[0])
	if name == own && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	if command, known := commands[name]; known {
		command()
		return
	}
	names := strings.Join(slices.Sorted(maps.Keys(commands)), ", ")
	fmt.Fprintf(os.Stderr, "%s: not a command of %s; it has %s\n", name, own, names)
	os.Exit(2)
}
