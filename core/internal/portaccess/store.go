package portaccess

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"caponier/core/internal/db"
)

// Session is a port session as it is kept and shown.
type Session struct {
	ConnectionID string    `json:"connection_id"`
	CoreID       string    `json:"core_id"`
	UserID       string    `json:"user_id"`
	UserName     string    `json:"user_name"`
	TargetID     string    `json:"target_id"`
	TargetName   string    `json:"target_name"`
	Account      string    `json:"account,omitempty"`
	Host         string    `json:"host" doc:"where to connect; empty = the host this API was reached by"`
	Port         int       `json:"port"`
	Address      string    `json:"address" doc:"host and port"`
	Client       string    `json:"client_ip" doc:"the only address that may connect"`
	OpenedAt     time.Time `json:"opened_at"`
	ExpiresAt    time.Time `json:"expires_at"`
	Open         bool      `json:"open"`
	ClosedAt     time.Time `json:"closed_at,omitzero"`
}

const columns = `id, core_id, user_id, user_name, target_id, target_name, account, address, port, client, opened_at, expires_at, closed_at`

const (
	insertSQL = `insert into port_sessions (id, connection_id, core_id, user_id, user_name, target_id, target_name, account,
  address, port, client, opened_at, expires_at)
values ($1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`
	closeSQL = `update port_sessions set closed_at = $2 where id = $1 and closed_at = 0`
	openSQL  = `select id from port_sessions where core_id = $1 and closed_at = 0`
	groupSQL = `select group_id from connections where id = $1`
	getSQL   = `select ` + columns + ` from port_sessions where id = $1`
	listSQL  = `select ` + columns + ` from port_sessions
where (user_id = $1 or $6 = '*' or $6 like '%,' || (select c.group_id from connections c where c.id = port_sessions.id) || ',%') and (closed_at = 0 or $2 = 1) and (opened_at < $3 or opened_at = $3 and id < $4)
order by opened_at desc, id desc limit $5`
)

func (s *Service) insert(ctx context.Context, x *Session) error {
	_, err := s.cfg.DB.ExecContext(ctx, insertSQL, x.ConnectionID, x.CoreID, x.UserID, x.UserName, x.TargetID, x.TargetName,
		x.Account, x.Host, x.Port, x.Client, x.OpenedAt.UnixMicro(), x.ExpiresAt.UnixMicro())
	if err != nil {
		return fmt.Errorf("insert port session %s: %w", x.ConnectionID, db.Classify(err))
	}
	return nil
}

func (s *Service) markClosed(ctx context.Context, id string) error {
	if _, err := s.cfg.DB.ExecContext(ctx, closeSQL, id, s.cfg.Now().UnixMicro()); err != nil {
		return fmt.Errorf("close port session %s: %w", id, err)
	}
	return nil
}

// reconcile closes rows of this core whose port is not open.
func (s *Service) reconcile(ctx context.Context) error {
	rows, err := s.cfg.DB.QueryContext(ctx, openSQL, s.cfg.Conns.CoreID())
	if err != nil {
		return fmt.Errorf("list open port sessions: %w", err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("list open port sessions: %w", err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list open port sessions: %w", err)
	}
	rows.Close()
	for _, id := range ids {
		// A session being opened has its row before it is in the map; its
		// connection is live then.
		s.mu.Lock()
		_, open := s.sessions[id]
		s.mu.Unlock()
		if open || s.cfg.Conns.Carries(id) {
			continue
		}
		if err := s.markClosed(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func scanSession(r db.Scanner) (*Session, error) {
	var x Session
	var opened, expires, closed int64
	err := r.Scan(&x.ConnectionID, &x.CoreID, &x.UserID, &x.UserName, &x.TargetID, &x.TargetName, &x.Account, &x.Host, &x.Port,
		&x.Client, &opened, &expires, &closed)
	if err != nil {
		return nil, db.Classify(err)
	}
	x.Address = net.JoinHostPort(x.Host, strconv.Itoa(x.Port))
	x.OpenedAt, x.ExpiresAt = time.UnixMicro(opened).UTC(), time.UnixMicro(expires).UTC()
	x.Open = closed == 0
	if closed != 0 {
		x.ClosedAt = time.UnixMicro(closed).UTC()
	}
	return &x, nil
}
