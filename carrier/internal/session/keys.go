package session

import (
	"slices"
	"sync"

	"caponier/carrier/internal/display"
	"caponier/shared/wire"
)

// chromiumKeys do not reach Chromium, which cannot be told to ignore them:
// windows and tabs beside the one there is, the page's source and tools, its
// lists and menus, files and printing, the address bar of a window without bars.
// Closing the last tab ends it, and the session; which tab is the last is not
// known here, so that none is closed by a key.
// Firefox ignores its own by its lock-down, so that pages get them.
var chromiumKeys = []string{
	"Ctrl+W", "Ctrl+F4", "Ctrl+N", "Ctrl+Shift+N", "Ctrl+Shift+T", "Ctrl+Shift+W", "Ctrl+Shift+Q", "Ctrl+Q", "Alt+F4",
	"Ctrl+Shift+K", "Ctrl+U", "Ctrl+Shift+U", "Shift+Escape", "Ctrl+Shift+P",
	"Ctrl+H", "Ctrl+J", "Ctrl+Shift+H", "Ctrl+Shift+O", "Ctrl+Shift+B", "Ctrl+D", "Ctrl+Shift+D", "Ctrl+Shift+Delete", "Ctrl+Shift+M", "Ctrl+Shift+A",
	"Ctrl+O", "Ctrl+S", "Ctrl+P", "Alt+F", "Alt+E", "Alt+Shift+I", "Alt+Shift+T", "Alt+Shift+B", "Alt+Shift+A", "Alt+Home",
	"F1", "F3", "F6", "F7", "F10", "F11", "Shift+F6", "Shift+F10", "Ctrl+F6", "Ctrl+Shift+E", "Ctrl+Shift+L", "Ctrl+Shift+Y",
}

// chromiumTools open its developer tools, where they are permitted.
var chromiumTools = []string{"F12", "Ctrl+Shift+I", "Ctrl+Shift+J", "Ctrl+Shift+C"}

var chromiumBlocked = sync.OnceValue(func() []display.Combination { return combinations(slices.Concat(chromiumKeys, chromiumTools)) })
var chromiumWithTools = sync.OnceValue(func() []display.Combination { return combinations(chromiumKeys) })

func combinations(keys []string) (list []display.Combination) {
	for _, k := range keys {
		c, err := display.ParseCombination(k)
		if err != nil {
			panic(err)
		}
		list = append(list, c)
	}
	return list
}

// blocked are the key combinations that do not reach a session's browser.
func blocked(s wire.CarrierSession) []display.Combination {
	switch {
	case s.Engine != wire.Chromium:
		return nil
	case s.Policy.DevTools:
		return chromiumWithTools()
	}
	return chromiumBlocked()
}
