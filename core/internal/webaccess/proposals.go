package webaccess

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"caponier/core/internal/db"
	"caponier/shared/webrule"
)

// Bounds of proposals.
const (
	maxWaiting   = 5000 // distinct rules not yet in the database
	maxProposals = 2000 // per target
	maxRuleText  = 4 << 10
)

const (
	upsertProposalSQL = `insert into web_proposals (target_id, digest, rule, count, first_at, last_at, example_url)
select $1, $2, $3, $4, $5, $6, $7 where exists (select 1 from targets where id = $1)
  and (exists (select 1 from web_proposals where target_id = $1 and digest = $2)
    or (select count(*) from web_proposals where target_id = $1) < $8)
on conflict (target_id, digest) do update set count = web_proposals.count + excluded.count,
  last_at = excluded.last_at, example_url = excluded.example_url`
	proposalsSQL = `select rule, count, first_at, last_at, example_url from web_proposals where target_id = $1
order by count desc, first_at, digest limit $2`
	dropProposalsSQL = `delete from web_proposals where target_id = $1`
)

// Proposal is a rule that would allow what sessions of a learning target were
// refused.
type Proposal struct {
	Rule       webrule.Rule `json:"rule"`
	Count      int64        `json:"count" doc:"requests it would have allowed"`
	FirstAt    time.Time    `json:"first_at"`
	LastAt     time.Time    `json:"last_at"`
	ExampleURL string       `json:"example_url"`
}

// proposals gathers what webproxies propose and writes it in batches.
type proposals struct {
	c Config

	// writing is held while a batch is written, so that flush returns when
	// everything added before is in the database.
	writing sync.Mutex
	mu      sync.Mutex
	waiting map[[2]string]*proposed // guarded by mu; by target and rule
}

type proposed struct {
	count       int64
	first, last time.Time
	example     string
}

func newProposals(c Config) *proposals {
	return &proposals{c: c, waiting: map[[2]string]*proposed{}}
}

// add counts a refused request of a target. What is no valid rule is dropped.
func (p *proposals) add(targetID, text, url string) {
	var r webrule.Rule
	if len(text) > maxRuleText || json.Unmarshal([]byte(text), &r) != nil {
		return
	}
	if (webrule.Policy{Allow: []webrule.Rule{r}}).Validate() != nil {
		return
	}
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	now := p.c.Now()
	key := [2]string{targetID, string(b)}
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.waiting[key]
	if w == nil {
		if len(p.waiting) >= maxWaiting {
			return
		}
		w = &proposed{first: now}
		p.waiting[key] = w
	}
	w.count++
	w.last, w.example = now, url
}

// flush writes what waits; what cannot be written waits on.
func (p *proposals) flush(ctx context.Context) {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	batch := p.waiting
	p.waiting = map[[2]string]*proposed{}
	p.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := p.c.DB.Tx(ctx, func(tx *db.Tx) error {
		told := map[string]bool{}
		for key, w := range batch {
			sum := sha256.Sum256([]byte(key[1]))
			_, err := tx.ExecContext(ctx, upsertProposalSQL, key[0], hex.EncodeToString(sum[:16]), key[1], w.count,
				w.first.UnixMicro(), w.last.UnixMicro(), w.example, maxProposals)
			if err != nil {
				return err
			}
			if !told[key[0]] {
				told[key[0]] = true
				if err := tx.Notify(ctx, topicProposals, key[0]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		return
	}
	p.c.Log.Error("proposals of learning targets not written; tried again", "err", err)
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, w := range batch {
		if now := p.waiting[key]; now != nil {
			now.count += w.count
			now.first = w.first
		} else if len(p.waiting) < maxWaiting {
			p.waiting[key] = w
		}
	}
}

// topicProposals: a learning target has new proposals; the ID is the target's.
const topicProposals = "web_proposals"

// list returns a target's proposals, the most frequent first.
func (p *proposals) list(ctx context.Context, targetID string) ([]Proposal, error) {
	all, err := db.Collect(ctx, p.c.DB, func(r db.Scanner) (Proposal, error) {
		var x Proposal
		var text string
		var first, last int64
		if err := r.Scan(&text, &x.Count, &first, &last, &x.ExampleURL); err != nil {
			return x, err
		}
		x.FirstAt, x.LastAt = time.UnixMicro(first).UTC(), time.UnixMicro(last).UTC()
		return x, json.Unmarshal([]byte(text), &x.Rule)
	}, proposalsSQL, targetID, maxProposals)
	if err != nil {
		return nil, fmt.Errorf("read proposals of %s: %w", targetID, err)
	}
	return all, nil
}

// drop forgets a target's proposals, in tx.
func (p *proposals) drop(ctx context.Context, tx *db.Tx, targetID string) error {
	p.mu.Lock()
	for key := range p.waiting {
		if key[0] == targetID {
			delete(p.waiting, key)
		}
	}
	p.mu.Unlock()
	_, err := tx.ExecContext(ctx, dropProposalsSQL, targetID)
	if err != nil {
		return fmt.Errorf("drop proposals: %w", err)
	}
	return tx.Notify(ctx, topicProposals, targetID)
}
