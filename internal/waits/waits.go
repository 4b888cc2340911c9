// Package waits is for tests that wait more than they compute: for timeouts, elections, tokens that expire.
package waits

import (
	"flag"
	"strconv"
)

// Beside lets n parallel tests run beside each other, more than there are processors, unless -parallel says how many. It is to be called before
// the tests run.
func Beside(n int) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if set {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err) // this is no test
	}
}
