package server

import "time"

// Rights is what a token allows, for people.
type Rights struct {
	Subject string    `json:"subject"`
	Clients []string  `json:"clients,omitempty"` // client ids besides the subject
	Issuer  string    `json:"issuer"`            // its configured name
	TokenID string    `json:"token_id,omitempty"`
	Expires time.Time `json:"expires"`
	Roles   []string  `json:"roles"`

	Publish   Grant `json:"publish"`
	Subscribe Grant `json:"subscribe"`
	History   Grant `json:"history"`
	Admin     Grant `json:"admin"`
}

// Grant is the patterns of one verb; > alone is everything.
type Grant struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
}
