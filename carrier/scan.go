package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"caponier/carrier/internal/files"
	"caponier/shared/dial"
	"caponier/shared/icap"
)

// scanner asks ICAP services (RFC 3507) that core names, at addresses that its
// dialer permits.
type scanner struct{ dialer *dial.Dialer }

// scan has a service look at a file.
func (s scanner) scan(ctx context.Context, url string, d files.Direction, name string, in io.Reader, size int64, out io.Writer) error {
	c, err := icap.New(icap.Config{URL: url, Dial: icap.Through(s.dialer)})
	if err != nil {
		return err
	}
	err = c.Scan(ctx, icap.File{Upload: d == files.Upload, Name: name, Size: size, Body: in}, out)
	if errors.Is(err, icap.ErrBlocked) {
		return fmt.Errorf("%w: %w", files.ErrInfected, err)
	}
	return err
}
