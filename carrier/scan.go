package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"caponier/carrier/internal/files"
	"caponier/shared/icap"
)

// scan has an ICAP service look at a file (RFC 3507).
func scan(ctx context.Context, url string, d files.Direction, name string, in io.Reader, size int64, out io.Writer) error {
	c, err := icap.New(icap.Config{URL: url})
	if err != nil {
		return err
	}
	err = c.Scan(ctx, icap.File{Upload: d == files.Upload, Name: name, Size: size, Body: in}, out)
	if errors.Is(err, icap.ErrBlocked) {
		return fmt.Errorf("%w: %w", files.ErrInfected, err)
	}
	return err
}
