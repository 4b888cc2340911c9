// Command runnel is the Runnel server and its clients.
package main

import (
	"os"

	"github.com/runnelhq/runnel/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
