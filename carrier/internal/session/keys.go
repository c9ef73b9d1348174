package session

import (
	"sync"

	"caponier/carrier/internal/display"
	"caponier/shared/wire"
)

// chromiumKeys do not reach Chromium, which cannot be told to ignore them:
// windows and tabs beside the one there is, the page's source and tools, its
// lists and menus, files and printing, the address bar of a window without bars.
// Firefox ignores its own by its lock-down, so that pages get them.
var chromiumKeys = []string{
	"Ctrl+N", "Ctrl+Shift+N", "Ctrl+Shift+T", "Ctrl+Shift+W", "Ctrl+Shift+Q", "Ctrl+Q", "Alt+F4",
	"F12", "Ctrl+Shift+I", "Ctrl+Shift+J", "Ctrl+Shift+C", "Ctrl+Shift+K", "Ctrl+U", "Ctrl+Shift+U", "Shift+Escape", "Ctrl+Shift+P",
	"Ctrl+H", "Ctrl+J", "Ctrl+Shift+H", "Ctrl+Shift+O", "Ctrl+Shift+B", "Ctrl+D", "Ctrl+Shift+D", "Ctrl+Shift+Delete", "Ctrl+Shift+M", "Ctrl+Shift+A",
	"Ctrl+O", "Ctrl+S", "Ctrl+P", "Alt+F", "Alt+E", "Alt+Shift+I", "Alt+Shift+T", "Alt+Shift+B", "Alt+Shift+A", "Alt+Home",
	"F1", "F3", "F6", "F7", "F10", "F11", "Shift+F6", "Shift+F10", "Ctrl+F6", "Ctrl+Shift+E", "Ctrl+Shift+L", "Ctrl+Shift+Y",
}

var chromiumBlocked = sync.OnceValue(func() (list []display.Combination) {
	for _, k := range chromiumKeys {
		c, err := display.ParseCombination(k)
		if err != nil {
			panic(err)
		}
		list = append(list, c)
	}
	return list
})

// blocked are the key combinations that do not reach a browser.
func blocked(engine string) []display.Combination {
	if engine != wire.Chromium {
		return nil
	}
	return chromiumBlocked()
}
