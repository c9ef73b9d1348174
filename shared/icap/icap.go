// Package icap asks an ICAP server (RFC 3507) about files and bodies.
package icap

import "net/http"

// Config is what a Client needs.
type Config struct{ URL string }

// Client asks one service.
type Client struct{ c Config }

// New makes a Client.
func New(c Config) (*Client, error) { return &Client{c}, nil }

// Request has the body of r scanned.
func (c *Client) Request(r *http.Request) (*http.Response, error) { return nil, nil }

// Response has the body of resp scanned.
func (c *Client) Response(r *http.Request, resp *http.Response) (*http.Response, error) {
	return nil, nil
}
