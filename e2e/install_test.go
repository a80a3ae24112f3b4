package e2e

import (
	"errors"
	"fmt"
	"os/exec"
)

// install runs a command in a folder that fetches from a registry what is written there, up to three times: registries fail now
// and then.
func install(folder, name string, args ...string) error {
	var failed error
	for range 3 {
		command := exec.Command(name, args...)
		command.Dir = folder
		output, err := command.CombinedOutput()
		if err == nil {
			return nil
		}
		failed = fmt.Errorf("%s: %w\n%s", name, err, output)
		if errors.Is(err, exec.ErrNotFound) {
			break
		}
	}
	return failed
}

// installNPM installs what a folder's package-lock.json names.
func installNPM(folder string) error {
	if err := install(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return fmt.Errorf("%w (where it is not installed: apt-get install nodejs npm)", err)
	}
	return nil
}
