package rfb

import (
	"image"
	"slices"
)

// Applications scroll by drawing everything anew. CommitMoves finds out what
// only moved, so that readers may copy it on their side instead of receiving it
// again. Only vertical movement is looked for, in columns one tile wide.
const (
	// history is how many generations a reader may be behind and still profit.
	history = 8
	// moveRun is the least height of a copied piece, in pixels.
	moveRun = 16
	// moveVotes is how many rows must agree on a distance to believe it.
	moveVotes = 8
	// moveSamples is how many columns are searched for the distance.
	moveSamples = 4
	// maxPieces bounds the copies and rectangles of one generation, and what a
	// reader is told.
	maxPieces = 96
)

// Move is a piece of the picture that can be had by copying.
type Move struct {
	To   image.Rectangle
	From image.Point
}

// Changes is what brings a reader up to date: first the copies, in this order,
// each from the reader's own picture as the copies before left it, then the
// rectangles.
type Changes struct {
	Moves []Move
	Rects []image.Rectangle
}

// step is how a generation came out of the one before.
type step struct {
	gen   uint64
	moves []Move
	rest  []image.Rectangle
}

// CommitMoves is Commit for framebuffers whose readers ask for Changes.
func (f *Framebuffer) CommitMoves() {
	if len(f.prev) != len(f.pix) || f.sized > f.gen {
		f.prev, f.steps = slices.Clone(f.pix), f.steps[:0]
		f.Commit()
		return
	}
	rest := f.Damage(f.gen, nil)
	area := 0
	for _, r := range rest {
		area += r.Dx() * r.Dy()
	}
	s := step{gen: f.gen + 1, rest: rest}
	if area >= f.w*f.h/8 {
		if moves, left, ok := f.findMoves(area); ok {
			s.moves, s.rest = moves, left
		}
	}
	for _, r := range rest {
		for y := r.Min.Y; y < r.Max.Y; y++ {
			copy(f.prevRow(y, r.Min.X, r.Max.X), f.Row(y, r.Min.X, r.Max.X))
		}
	}
	if len(f.steps) == history {
		f.steps = slices.Delete(f.steps, 0, 1)
	}
	f.steps = append(f.steps, s)
	f.Commit()
}

func (f *Framebuffer) prevRow(y, x0, x1 int) []uint32 { return f.prev[y*f.w+x0 : y*f.w+x1] }

// column is a tile column's damaged rows.
type column struct{ x0, x1, y0, y1 int }

func (f *Framebuffer) damagedColumns() (cols []column) {
	for tx := range f.cols {
		c := column{x0: tx * Tile, x1: min(tx*Tile+Tile, f.w), y0: -1}
		for ty := range f.rows {
			if f.gens[ty*f.cols+tx] > f.gen {
				if c.y0 < 0 {
					c.y0 = ty * Tile
				}
				c.y1 = min(ty*Tile+Tile, f.h)
			}
		}
		if c.y0 >= 0 {
			cols = append(cols, c)
		}
	}
	return cols
}

// findMoves looks for one distance by which much of the damage moved. ok is
// false when copying would not spare half of the damage.
func (f *Framebuffer) findMoves(damaged int) (moves []Move, rest []image.Rectangle, ok bool) {
	cols := f.damagedColumns()
	dy := f.distance(cols)
	if dy == 0 {
		return nil, nil, false
	}
	spared := 0
	for i := 0; i < len(cols); {
		runs := f.runs(cols[i], dy)
		end := i + 1 // adjacent columns that moved alike are copied as one
		for end < len(cols) && cols[end].x0 == cols[end-1].x1 && cols[end].y0 == cols[i].y0 && cols[end].y1 == cols[i].y1 &&
			slices.Equal(f.runs(cols[end], dy), runs) {
			end++
		}
		x0, x1, y := cols[i].x0, cols[end-1].x1, cols[i].y0
		var own []Move
		for _, run := range runs {
			if run[0] > y {
				rest = appendSplit(rest, image.Rect(x0, y, x1, run[0]))
			}
			own = append(own, Move{To: image.Rect(x0, run[0], x1, run[1]), From: image.Pt(x0, run[0]-dy)})
			spared += (x1 - x0) * (run[1] - run[0])
			y = run[1]
		}
		if y < cols[i].y1 {
			rest = appendSplit(rest, image.Rect(x0, y, x1, cols[i].y1))
		}
		if dy > 0 { // downwards: the lowest first, so that no source is overwritten
			slices.Reverse(own)
		}
		moves = append(moves, own...)
		i = end
	}
	if 2*spared < damaged || len(moves)+len(rest) > maxPieces {
		return nil, nil, false
	}
	return moves, rest, true
}

// appendSplit appends r in pieces that an Encoder takes.
func appendSplit(dst []image.Rectangle, r image.Rectangle) []image.Rectangle {
	const width, height = 8 * Tile, 2 * Tile
	for y := r.Min.Y; y < r.Max.Y; y += height {
		for x := r.Min.X; x < r.Max.X; x += width {
			dst = append(dst, image.Rect(x, y, min(x+width, r.Max.X), min(y+height, r.Max.Y)))
		}
	}
	return dst
}

// distance is the vertical distance most sampled rows agree on, 0 if none.
func (f *Framebuffer) distance(cols []column) int {
	votes := map[int]int{}
	for i := range min(moveSamples, len(cols)) {
		f.vote(cols[(2*i+1)*len(cols)/(2*min(moveSamples, len(cols)))], votes)
	}
	best, most := 0, moveVotes-1
	for dy, n := range votes {
		if n > most || n == most && abs(dy) < abs(best) {
			best, most = dy, n
		}
	}
	return best
}

func abs(v int) int { return max(v, -v) }

// vote counts, for rows of a column that occur once before, how far they moved.
func (f *Framebuffer) vote(c column, votes map[int]int) {
	was := map[uint64]int{}
	for y := c.y0; y < c.y1; y++ {
		if h, ok := rowHash(f.prevRow(y, c.x0, c.x1)); ok {
			if _, twice := was[h]; twice {
				was[h] = -1
			} else {
				was[h] = y
			}
		}
	}
	for y := c.y0; y < c.y1; y++ {
		if h, ok := rowHash(f.Row(y, c.x0, c.x1)); ok {
			if from, ok := was[h]; ok && from >= 0 && from != y {
				votes[y-from]++
			}
		}
	}
}

// rowHash reports false for rows of one colour: they fit everywhere.
func rowHash(row []uint32) (uint64, bool) {
	h, plain := uint64(len(row)), true
	for _, v := range row {
		plain = plain && v == row[0]
		h = (h ^ uint64(v)) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return h, !plain
}

// runs are the rows of c, from and to, that equal those dy above before.
func (f *Framebuffer) runs(c column, dy int) (runs [][2]int) {
	lo, hi := max(c.y0, dy), min(c.y1, f.h+dy)
	for y := lo; y < hi; y++ {
		from := y
		for y < hi && slices.Equal(f.Row(y, c.x0, c.x1), f.prevRow(y-dy, c.x0, c.x1)) {
			y++
		}
		if y-from >= moveRun {
			runs = append(runs, [2]int{from, y})
		}
	}
	return runs
}

// Changes tells what brings a reader of generation since up to date. dirty are
// places where the reader's picture differs from that generation's. dst is
// reused.
func (f *Framebuffer) Changes(since uint64, dst Changes, dirty ...image.Rectangle) Changes {
	dst.Moves, dst.Rects = dst.Moves[:0], dst.Rects[:0]
	if moved, ok := f.follow(since, dst, dirty); ok {
		return moved
	}
	dst.Moves, dst.Rects = dst.Moves[:0], f.Damage(since, dst.Rects[:0])
	return dst
}

// follow plays the steps since a generation on what a reader has: where its
// picture is wrong, and where copies bring what is wrong. It reports false when
// that spares nothing.
func (f *Framebuffer) follow(since uint64, dst Changes, dirty []image.Rectangle) (Changes, bool) {
	first := slices.IndexFunc(f.steps, func(s step) bool { return s.gen == since+1 })
	if first < 0 || !slices.ContainsFunc(f.steps[first:], func(s step) bool { return len(s.moves) > 0 }) {
		return dst, false
	}
	bad := append(dst.Rects, dirty...)
	for _, s := range f.steps[first:] {
		for _, m := range s.moves {
			shift := m.To.Min.Sub(m.From)
			from := m.To.Sub(shift)
			var carried []image.Rectangle
			for _, b := range bad {
				if c := b.Intersect(from); !c.Empty() {
					carried = append(carried, c.Add(shift))
				}
			}
			bad = slices.DeleteFunc(bad, func(b image.Rectangle) bool { return b.In(m.To) })
			bad = append(bad, carried...)
		}
		dst.Moves = append(dst.Moves, s.moves...)
		for _, r := range s.rest {
			if !slices.ContainsFunc(bad, func(b image.Rectangle) bool { return r.In(b) }) {
				bad = append(bad, r)
			}
		}
		if len(bad)+len(dst.Moves) > maxPieces {
			return dst, false
		}
	}
	dst.Rects = bad
	sent, all := 0, 0
	for _, r := range bad {
		sent += r.Dx() * r.Dy()
	}
	for _, r := range f.Damage(since, nil) {
		all += r.Dx() * r.Dy()
	}
	return dst, 4*sent < 3*all
}
