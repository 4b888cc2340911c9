// Package runnel is the Go client of Runnel, a streaming and push server that speaks gRPC.
//
//	client, err := runnel.Dial("127.0.0.1:50051")
//	...
//	ack, err := client.Publish(ctx, "quotes.AAPL", payload)
//
//	sub, err := client.Subscribe(ctx, "quotes.>", runnel.From(runnel.Earliest()))
//	for event, err := range sub.Events() {
//		...
//	}
//
// A Subscription reconnects by itself and resumes exactly where it was: the application gets each offset once, in order. What
// cannot be delivered is said: a gap or dropped events are yielded as an *Error whose Notice is set, and the subscription goes
// on. Position is text that can be stored and handed to After in another process.
//
// Dial takes a list of servers, or a name that leads to several, and WithBalancing says how to choose; a session that has to leave one goes on
// at another.
//
// Publishes carry an event id, so retrying one whose outcome is unknown cannot store it twice.
//
// All types are safe for concurrent use, unless they say otherwise.
package runnel
