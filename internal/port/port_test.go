package port

import (
	"fmt"
	"net"
	"testing"
)

func TestFree(t *testing.T) {
	ports, err := Free(200)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] || p < lowest || p >= lowest+count {
			t.Errorf("port %d", p)
		}
		seen[p] = true
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
