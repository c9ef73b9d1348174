package display

import (
	"fmt"
	"image"
	"slices"
	"strings"

	"caponier/shared/rfb"
)

// Mods are modifier keys.
type Mods uint8

// The modifiers.
const (
	Ctrl Mods = 1 << iota
	Alt
	Shift
	Meta
)

var modNames = []struct {
	mod  Mods
	name string
}{{Ctrl, "Ctrl"}, {Alt, "Alt"}, {Shift, "Shift"}, {Meta, "Meta"}}

// Combination is a key pressed while exactly these modifiers are.
type Combination struct {
	Mods Mods
	// Sym is the key's X keysym; letters in lower case.
	Sym uint32
}

// Keysyms with names in combinations (X11's keysymdef.h).
var symNames = map[string]uint32{
	"Backspace": 0xff08, "Tab": 0xff09, "Enter": 0xff0d, "Escape": 0xff1b, "Space": 0x20, "Plus": 0x2b,
	"Home": 0xff50, "Left": 0xff51, "Up": 0xff52, "Right": 0xff53, "Down": 0xff54, "PageUp": 0xff55,
	"PageDown": 0xff56, "End": 0xff57, "Print": 0xff61, "Insert": 0xff63, "Delete": 0xffff,
	"F1": 0xffbe, "F2": 0xffbf, "F3": 0xffc0, "F4": 0xffc1, "F5": 0xffc2, "F6": 0xffc3,
	"F7": 0xffc4, "F8": 0xffc5, "F9": 0xffc6, "F10": 0xffc7, "F11": 0xffc8, "F12": 0xffc9,
}

// ParseCombination reads "Ctrl+Shift+I", "F12", "Ctrl+Plus": modifiers in any
// order, then one character or a key's name.
func ParseCombination(s string) (Combination, error) {
	parts := strings.Split(s, "+")
	var c Combination
	for _, p := range parts[:len(parts)-1] {
		i := slices.IndexFunc(modNames, func(m struct {
			mod  Mods
			name string
		}) bool {
			return strings.EqualFold(m.name, p)
		})
		if i < 0 {
			return c, fmt.Errorf("key combination %q: %q is not Ctrl, Alt, Shift or Meta", s, p)
		}
		c.Mods |= modNames[i].mod
	}
	last := parts[len(parts)-1]
	for name, sym := range symNames {
		if strings.EqualFold(name, last) {
			c.Sym = sym
			return c, nil
		}
	}
	if len(last) != 1 || last[0] <= ' ' || last[0] > '~' {
		return c, fmt.Errorf("key combination %q: %q is no key", s, last)
	}
	c.Sym = uint32(strings.ToLower(last)[0])
	return c, nil
}

// String is the form ParseCombination reads.
func (c Combination) String() string {
	var b strings.Builder
	for _, m := range modNames {
		if c.Mods&m.mod != 0 {
			b.WriteString(m.name + "+")
		}
	}
	for name, sym := range symNames {
		if sym == c.Sym {
			return b.String() + name
		}
	}
	if c.Sym > ' ' && c.Sym <= '~' {
		return b.String() + strings.ToUpper(string(rune(c.Sym)))
	}
	return fmt.Sprintf("%s0x%x", b.String(), c.Sym)
}

// modOf says which modifier a keysym is to applications: the key Meta shares its
// bit (Mod1) with Alt, what people call Meta or Windows is Super.
func modOf(sym uint32) Mods {
	switch sym {
	case 0xffe3, 0xffe4:
		return Ctrl
	case 0xffe7, 0xffe8, 0xffe9, 0xffea:
		return Alt
	case 0xffe1, 0xffe2:
		return Shift
	case 0xffeb, 0xffec:
		return Meta
	}
	return 0
}

// keypad are the keysyms of the keypad that are other keys to applications.
var keypad = map[uint32]uint32{
	0xff80: 0x20, 0xff89: 0xff09, 0xff8d: 0xff0d, 0xff91: 0xffbe, 0xff92: 0xffbf, 0xff93: 0xffc0, 0xff94: 0xffc1,
	0xff95: 0xff50, 0xff96: 0xff51, 0xff97: 0xff52, 0xff98: 0xff53, 0xff99: 0xff54, 0xff9a: 0xff55, 0xff9b: 0xff56, 0xff9c: 0xff57,
	0xff9e: 0xff63, 0xff9f: 0xffff, 0xffab: '+',
}

// plainSym is the keysym as combinations name it: of the several by which X
// knows a key the usual one, letters in lower case.
func plainSym(sym uint32) uint32 {
	const unicode = 0x0100_0000 // X11's keysyms of Unicode characters
	if sym > unicode+' ' && sym <= unicode+'~' {
		sym -= unicode
	}
	if k, ok := keypad[sym]; ok {
		sym = k
	}
	if sym >= 'A' && sym <= 'Z' {
		sym += 'a' - 'A'
	}
	return sym
}

// maxPressed bounds the keys one viewer holds down.
const maxPressed = 64

// keyboard is what is pressed, by which viewer.
type keyboard struct {
	pressed []press
}

type press struct {
	by  *viewer
	key rfb.Key
	// blocked: the X server was never told.
	blocked bool
}

// mods are the modifiers that are down, whoever holds them: the X server knows
// one keyboard.
func (k *keyboard) mods() (m Mods) {
	for _, p := range k.pressed {
		m |= modOf(p.key.Sym)
	}
	return m
}

// key passes a key on, or not. It returns what to send and the combination that
// was blocked, if one was.
func (d *Display) keyLocked(v *viewer, key rfb.Key, down bool) (send []byte, blocked *Combination) {
	i := slices.IndexFunc(d.keys.pressed, func(p press) bool {
		return p.by == v && (p.key == key || key.Code != 0 && p.key.Code == key.Code)
	})
	if !down {
		if i < 0 {
			return nil, nil // pressed before a lock, or never
		}
		p := d.keys.pressed[i]
		d.keys.pressed = slices.Delete(d.keys.pressed, i, i+1)
		if p.blocked {
			return nil, nil
		}
		return rfb.AppendKey(nil, p.key, false, d.screen.scan.Load()), nil
	}
	if d.locked || len(d.keys.pressed) >= maxPressed*MaxViewers {
		return nil, nil
	}
	c := Combination{Mods: d.keys.mods(), Sym: plainSym(key.Sym)}
	// A letter's case wins over Shift: the X server presses or releases that for
	// it. Keys with a scancode it takes as they are.
	made := c
	switch upper := key.Sym&0x20 == 0; {
	case c.Sym < 'a' || c.Sym > 'z':
	case upper:
		made.Mods |= Shift
	default:
		made.Mods &^= Shift
	}
	p := press{by: v, key: key, blocked: slices.Contains(d.policy.Blocked, c) || slices.Contains(d.policy.Blocked, made)}
	if i < 0 { // else it repeats
		mine := 0
		for _, q := range d.keys.pressed {
			if q.by == v {
				mine++
			}
		}
		if mine >= maxPressed {
			return nil, nil
		}
		d.keys.pressed = append(d.keys.pressed, p)
	} else if d.keys.pressed[i].blocked {
		return nil, nil
	}
	if p.blocked {
		return nil, &c
	}
	return rfb.AppendKey(nil, key, true, d.screen.scan.Load()), nil
}

// releaseLocked releases what a viewer holds down.
func (d *Display) releaseLocked(v *viewer) (send []byte) {
	d.keys.pressed = slices.DeleteFunc(d.keys.pressed, func(p press) bool {
		if p.by != v {
			return false
		}
		if !p.blocked {
			send = rfb.AppendKey(send, p.key, false, d.screen.scan.Load())
		}
		return true
	})
	if v.buttons != 0 {
		v.buttons = 0
		send = rfb.AppendPointer(send, v.at, 0, d.screen.more.Load())
	}
	return send
}

func (d *Display) releaseAllLocked() (send []byte) {
	for v := range d.viewers {
		send = append(send, d.releaseLocked(v)...)
	}
	return send
}

// pointerLocked moves the pointer for a viewer.
func (d *Display) pointerLocked(v *viewer, at image.Point, buttons uint16) []byte {
	if d.locked {
		return nil
	}
	w, h := d.drawn.Size()
	at = image.Pt(min(at.X, w-1), min(at.Y, h-1))
	v.at, v.buttons = at, buttons
	d.pointer = &at
	d.wakeLocked()
	return rfb.AppendPointer(nil, at, buttons, d.screen.more.Load())
}
