//go:build !unix

package load

// yield cannot be done here.
func yield() {}
