// Package browser runs browser containers on a Docker Engine (1.40 of its API
// or later) that shares this machine's file system.
//
// A container is used by one person once. It has no network, no capability, no
// writable file but in memory, and a bound on everything it can use up; what
// it may reach of this machine is one directory of sockets, mounted read-only.
// Every container carries the label of its carrier: others are never touched.
package browser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"caponier/shared/telemetry"
)

// Labels of containers.
const (
	LabelCarrier = "caponier.carrier" // the node that made it
	LabelSlot    = "caponier.slot"    // its directory
)

// Where a container sees things.
const (
	SharedDir = "/run/caponier" // the slot's directory, read-only
	FilesDir  = "/files"        // what its user uploads and downloads
)

// User runs everything in a container.
const User = "10001:10001"

// Config is what an Engine needs.
type Config struct {
	// Host is the engine's socket, "unix:///run/docker.sock"; empty: DOCKER_HOST
	// or the usual place.
	Host string
	// Images are the names of the images by the browser in them (wire.Firefox,
	// wire.Chromium). At least one.
	Images map[string]string
	// Node is the carrier's node ID. Required.
	Node string
	// Seccomp is a profile (JSON) in place of Docker's own; empty: Docker's.
	Seccomp string
	Limits  Limits
	Log     *slog.Logger // nil: discard
}

// Limits bound one container.
type Limits struct {
	Memory int64   // bytes, and no swap
	Shm    int64   // bytes of /dev/shm
	Tmp    int64   // bytes of /tmp, where profile and caches live
	Files  int64   // bytes of uploads and downloads
	Pids   int64   // processes and threads
	CPUs   float64 // 1.5: one and a half
	// Alone is how long it outlives a carrier that does not come back; 0: 15 min.
	Alone time.Duration
}

// Engine makes and removes containers. Safe for concurrent use.
type Engine struct {
	c   Config
	log *slog.Logger
	api *client.Client
}

// New makes an Engine. The daemon need not be running yet.
func New(c Config) (*Engine, error) {
	if len(c.Images) == 0 || c.Node == "" {
		return nil, errors.New("browser: images and node must be set")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	opts := []client.Opt{client.FromEnv}
	if c.Host != "" {
		opts = []client.Opt{client.WithHost(c.Host)}
	}
	api, err := client.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	return &Engine{c: c, log: c.Log, api: api}, nil
}

// Close gives the connections to the daemon back.
func (e *Engine) Close() error { return e.api.Close() }

// Problem is an obstacle that an operator must remove; its text is for people.
type Problem struct {
	Text string
	Err  error
}

// Error implements error.
func (p *Problem) Error() string { return p.Text }

// Unwrap gives the cause.
func (p *Problem) Unwrap() error { return p.Err }

// Check returns what keeps containers of a browser from being started, a
// *Problem, or nil.
func (e *Engine) Check(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	image, ok := e.c.Images[name]
	if !ok {
		return &Problem{Text: "there is no image of " + name}
	}
	_, err := e.api.ImageInspect(ctx, image)
	return e.explain(err, image)
}

// explain turns the usual failures into words; image is the one in question.
func (e *Engine) explain(err error, image string) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return &Problem{Text: fmt.Sprintf("image %s is missing: run make images", image), Err: err}
	case client.IsErrConnectionFailed(err), errors.Is(err, context.DeadlineExceeded):
		return &Problem{Text: "Docker does not answer: start it, or set docker in carrier.toml", Err: err}
	}
	return err
}

// Spec describes one container.
type Spec struct {
	Slot   string // names it
	Dir    string // on this machine, mounted at SharedDir
	Screen string // WIDTHxHEIGHT
	Engine string // the browser, a key of Config.Images
	// Tools: a Chromium that can have developer tools, which is decided when it
	// starts; whether they may be used is not.
	Tools bool
}

// Container is one of ours.
type Container struct {
	ID      string
	Slot    string
	Running bool
	// Of a container that has ended:
	ExitCode int
	OOM      bool
}

// Start makes and starts a container and returns its ID. What cannot be
// started is removed. It begins with a small share of the CPU; see Raise.
func (e *Engine) Start(ctx context.Context, s Spec) (string, error) {
	image, ok := e.c.Images[s.Engine]
	if !ok {
		return "", &Problem{Text: "there is no image of " + s.Engine}
	}
	l := e.c.Limits
	l.Alone = cmp.Or(l.Alone, 15*time.Minute)
	security := []string{"no-new-privileges:true"}
	if e.c.Seccomp != "" {
		security = append(security, "seccomp="+e.c.Seccomp)
	}
	tmpfs := func(size int64, more string) string {
		return fmt.Sprintf("rw,noexec,nosuid,nodev,size=%d%s", size, more)
	}
	env := []string{"CAPONIER_SCREEN=" + s.Screen, "CAPONIER_ALONE=" + l.Alone.String()}
	if s.Tools {
		env = append(env, "CAPONIER_TOOLS=1")
	}
	created, err := e.api.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name: "caponier-" + s.Slot,
		Config: &container.Config{
			Image: image, User: User, Hostname: "browser", NetworkDisabled: true,
			Env:    env,
			Labels: map[string]string{LabelCarrier: e.c.Node, LabelSlot: s.Slot},
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "none", IpcMode: "private", CgroupnsMode: "private",
			CapDrop: []string{"ALL"}, SecurityOpt: security, ReadonlyRootfs: true,
			Tmpfs: map[string]string{
				"/tmp":   tmpfs(l.Tmp, ",mode=1777"),
				FilesDir: tmpfs(l.Files, ",uid=10001,gid=10001,mode=0700"),
			},
			Mounts:  []mount.Mount{{Type: mount.TypeBind, Source: s.Dir, Target: SharedDir, ReadOnly: true}},
			ShmSize: l.Shm, OomScoreAdj: 500,
			LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "64k", "max-file": "1"}},
			Resources: container.Resources{
				Memory: l.Memory, MemorySwap: l.Memory, PidsLimit: new(l.Pids), NanoCPUs: int64(l.CPUs * 1e9), CPUShares: 128,
				Ulimits: []*container.Ulimit{{Name: "core"}, {Name: "nofile", Soft: 8192, Hard: 8192}},
			},
			Init: new(false),
		},
	})
	if err != nil {
		return "", fmt.Errorf("make container: %w", e.explain(err, image))
	}
	if _, err := e.api.ContainerStart(ctx, created.ID, client.ContainerStartOptions{}); err != nil {
		err = fmt.Errorf("start container: %w", e.explain(err, image))
		// The caller's context may be what ended it.
		away, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return "", errors.Join(err, e.Remove(away, created.ID))
	}
	return created.ID, nil
}

// Raise gives a container its full share of the CPU: somebody waits for it.
func (e *Engine) Raise(ctx context.Context, id string) error {
	_, err := e.api.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{Resources: &container.Resources{CPUShares: 1024}})
	if err != nil {
		return fmt.Errorf("raise container: %w", err)
	}
	return nil
}

// Remove kills a container and removes it with everything in it. One that is
// not there is fine.
func (e *Engine) Remove(ctx context.Context, id string) error {
	_, err := e.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	if errdefs.IsConflict(err) { // somebody else is removing it: wait for that
		w := e.api.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
		select {
		case <-w.Result:
			return nil
		case werr := <-w.Error:
			if errdefs.IsNotFound(werr) {
				return nil
			}
		}
	}
	return fmt.Errorf("remove container: %w", e.explain(err, "of the container"))
}

// List returns the containers of this carrier, running or not.
func (e *Engine) List(ctx context.Context) ([]Container, error) {
	found, err := e.api.ContainerList(ctx, client.ContainerListOptions{All: true,
		Filters: client.Filters{}.Add("label", LabelCarrier+"="+e.c.Node)})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", e.explain(err, "of a container"))
	}
	list := make([]Container, 0, len(found.Items))
	for _, f := range found.Items {
		list = append(list, Container{ID: f.ID, Slot: f.Labels[LabelSlot], Running: f.State == container.StateRunning})
	}
	return list, nil
}

// Inspect tells how a container is; ok is false when there is none.
func (e *Engine) Inspect(ctx context.Context, id string) (c Container, ok bool, err error) {
	r, err := e.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return Container{}, false, nil
	}
	if err != nil {
		return Container{}, false, fmt.Errorf("inspect container: %w", e.explain(err, "of the container"))
	}
	c = Container{ID: r.Container.ID}
	if r.Container.Config != nil {
		c.Slot = r.Container.Config.Labels[LabelSlot]
	}
	if s := r.Container.State; s != nil {
		c.Running, c.ExitCode, c.OOM = s.Running, s.ExitCode, s.OOMKilled
	}
	return c, true, nil
}

// Ended waits until a container does not run any more. An error says that it
// cannot be told, because the daemon is away for instance.
func (e *Engine) Ended(ctx context.Context, id string) error {
	w := e.api.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-w.Result:
		return nil
	case err := <-w.Error:
		if errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("wait for container: %w", err)
	}
}

// Starved tells of each container of this carrier in which the kernel ended a
// process for want of memory, until ctx ends or the daemon cannot be asked any
// more. It begins with what happened since, so that nothing is missed between
// two calls; the same may be told twice.
func (e *Engine) Starved(ctx context.Context, since time.Time, tell func(id string)) error {
	r := e.api.Events(ctx, client.EventsListOptions{Since: strconv.FormatInt(since.Unix(), 10),
		Filters: client.Filters{}.Add("type", string(events.ContainerEventType)).Add("event", string(events.ActionOOM)).Add("label", LabelCarrier+"="+e.c.Node)})
	for {
		select {
		case m := <-r.Messages:
			tell(m.Actor.ID)
		case err := <-r.Err:
			return fmt.Errorf("listen to the daemon: %w", e.explain(err, "of the container"))
		}
	}
}

// maxLog bounds what Logs returns, in bytes.
const maxLog = 4 << 10

// Logs returns the last lines of a container, for this process's log.
func (e *Engine) Logs(ctx context.Context, id string) string {
	r, err := e.api.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "20"})
	if err != nil {
		e.log.Debug("container log", telemetry.KeyErr, err)
		return ""
	}
	defer r.Close()
	var b strings.Builder
	if _, err := stdcopy.StdCopy(&b, &b, io.LimitReader(r, maxLog)); err != nil {
		e.log.Debug("container log", telemetry.KeyErr, err)
	}
	return strings.TrimSpace(b.String())
}
