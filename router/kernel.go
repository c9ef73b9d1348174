package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"caponier/router/internal/enforce"
	"caponier/router/internal/nft"
	"caponier/shared/daemon"
	"caponier/shared/node"
	"caponier/shared/wire"
)

// kernelBackend is the nftables table as an enforce.Backend.
type kernelBackend struct{ t *nft.Table }

func (b kernelBackend) Sync(ctx context.Context, want []wire.RouterSession) (enforce.Result, error) {
	res, err := b.t.Replace(ctx, want)
	return enforce.Result{Failed: res.Failed, Ended: res.Ended}, err
}

func (b kernelBackend) Apply(ctx context.Context, add []wire.RouterSession, remove []string) (enforce.Result, error) {
	res, err := b.t.Apply(ctx, add, remove)
	return enforce.Result{Failed: res.Failed, Ended: res.Ended}, err
}

func (b kernelBackend) Renew(ctx context.Context, d time.Duration) error { return b.t.Renew(ctx, d) }

func (b kernelBackend) Counters(ctx context.Context, ids []string) ([]wire.RouterCount, error) {
	return b.t.Counters(ctx, ids)
}

// Check is the table's own business: it tells by Changed.
func (b kernelBackend) Check(context.Context) error { return nil }

func (b kernelBackend) Info() enforce.Info {
	return enforce.Info{Type: typeNFTables, Leased: true, Kernel: true}
}

func (b kernelBackend) Close() error { return b.t.Close() }

func (c *NFTablesConfig) table(log *slog.Logger) nft.Config {
	return nft.Config{Log: log, Table: c.Table, RulePriority: uint32(c.RulePriority), ClientInterfaces: c.Clients}
}

// openKernel opens the table; its watcher is a part of the program.
func openKernel(ctx context.Context, cfg *Config, p *node.Parts) (enforce.Backend, <-chan struct{}, error) {
	t, err := nft.Open(ctx, cfg.NFTables.table(p.Log))
	if err != nil {
		return nil, nil, kernelHint(err)
	}
	p.Go("nftables", t.Run)
	return kernelBackend{t}, t.Changed(), nil
}

// kernelHint tells what to do about errors of the kernel's side.
func kernelHint(err error) error {
	text := ""
	switch {
	case errors.Is(err, nft.ErrLocked):
		text = "stop the other router of this machine first (systemctl stop caponier-router)"
	case errors.Is(err, unix.EPERM):
		text = "run it as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		text = "the kernel needs nf_tables with NAT and connection tracking (modprobe nf_tables nf_nat nf_conntrack)"
	}
	if err == nil || text == "" {
		return err
	}
	return &daemon.Hinted{Err: err, Hint: text}
}
