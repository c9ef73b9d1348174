package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"caponier/router/internal/enforce"
	"caponier/shared/daemon"
)

var errNoKernel = errors.New("this build has no nftables backend")

type kernel struct{}

func (kernel) latch(context.Context) error  { return errNoKernel }
func (kernel) remove(context.Context) error { return errNoKernel }

func onKernel(_ flags, _ []string, _ io.Writer, f func(kernel) error) error { return f(kernel{}) }

func openKernel(context.Context, *Config, *daemon.Group, *slog.Logger) (enforce.Backend, <-chan struct{}, error) {
	return nil, nil, errNoKernel
}
