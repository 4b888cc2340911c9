package broker

import "fmt"

// InvalidError says that a field of a request is wrong.
type InvalidError struct {
	Field  string
	Reason string // one line
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

// TooLargeError says that an event is larger than it may be.
type TooLargeError struct {
	What        string
	Size, Limit int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the %s has %d bytes, %d are allowed", e.What, e.Size, e.Limit)
}

// ForbiddenError says that the caller may not do what it asked for. It is the same whether what was named exists or not.
type ForbiddenError struct{ Verb, Pattern string }

func (e *ForbiddenError) Error() string { return "not allowed to " + e.Verb + " " + e.Pattern }

// PolicyError says that a subscription's overflow policy cannot be had.
type PolicyError struct{ Reason string }

func (e *PolicyError) Error() string { return e.Reason }
