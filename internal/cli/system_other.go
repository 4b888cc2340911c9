//go:build !unix

package cli

import (
	"os"
	"os/exec"
	"time"
)

// readable cannot be told here: a read may block.
func readable(*os.File, time.Duration) bool { return true }

// abandoned cannot be told here: the next write will.
func abandoned(*os.File) bool { return false }

// rootDir is where the file system begins.
const rootDir = `C:\`

// detach leaves c in the process group of this process.
func detach(*exec.Cmd) {}

// openFiles is not known here.
func openFiles() int { return 0 }
