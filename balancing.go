package runnel

import (
	"context"
	"fmt"
	"strings"

	_ "google.golang.org/grpc/balancer/leastrequest"       // least_request_experimental
	_ "google.golang.org/grpc/balancer/roundrobin"         // round_robin
	_ "google.golang.org/grpc/balancer/weightedroundrobin" // weighted_round_robin
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// Balancing is how a client chooses among the servers that its target leads to. It chooses for each call and each new stream: what is
// open stays where it is.
type Balancing string

const (
	// PickFirst connects to one server, chosen at random, and stays with it. It is the default, and right for end clients.
	PickFirst Balancing = "pick-first"
	// RoundRobin connects to all servers and takes them in turn. It is for backends with many streams.
	RoundRobin Balancing = "round-robin"
	// LeastRequest connects to all servers and takes, of two at random, the one with fewer calls and streams of this client.
	LeastRequest Balancing = "least-request"
	// Weighted connects to all servers and prefers those that have room for more, as they report themselves every 30 s.
	Weighted Balancing = "weighted"
)

// Balancings are all that WithBalancing takes.
func Balancings() []Balancing { return []Balancing{PickFirst, RoundRobin, LeastRequest, Weighted} }

var policies = map[Balancing]string{
	PickFirst:    `{"pick_first":{"shuffleAddressList":true}}`,
	RoundRobin:   `{"round_robin":{}}`,
	LeastRequest: `{"least_request_experimental":{"choiceCount":2}}`,
	// Load is reported on a stream of its own, since what reports come with the answers of calls are rare where streams are long.
	Weighted: `{"weighted_round_robin":{"enableOobLoadReport":true,"oobReportingPeriod":"30s"}}`,
}

// WithBalancing sets the policy; default PickFirst.
func WithBalancing(b Balancing) Option { return func(o *options) { o.balancing = b } }

// serviceConfig is the policy as grpc takes it.
func (b Balancing) serviceConfig() (string, error) {
	policy, ok := policies[b]
	if !ok {
		var words []string
		for _, one := range Balancings() {
			words = append(words, string(one))
		}
		return "", fmt.Errorf("balancing %q is not one of %s", string(b), strings.Join(words, ", "))
	}
	return `{"loadBalancingConfig":[` + policy + `]}`, nil
}

// loadReports is the prefix of the calls that grpc's balancer makes by itself.
const loadReports = "/xds.service.orca.v3.OpenRcaService/"

// reporting gives those calls what all others of the client carry: servers report their load to whom they know.
type reporting struct{ c *Client }

func (r reporting) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if !strings.HasPrefix(info.Method, loadReports) {
		return nil, nil
	}
	out, _, err := r.c.outgoing(ctx, "")
	if err != nil {
		return nil, err
	}
	md, _ := metadata.FromOutgoingContext(out)
	all := map[string]string{}
	for name, values := range md {
		all[name] = values[0]
	}
	return all, nil
}

// RequireTransportSecurity is false because tokens go over whatever the application has chosen, as in all other calls.
func (r reporting) RequireTransportSecurity() bool { return false }
