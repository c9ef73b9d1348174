package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Browsers, of which an image has one.
const (
	firefox  = "/usr/bin/firefox-esr"
	chromium = "/usr/lib/chromium/chromium"
)

// policies is where Chromium reads what it may do: the carrier's directory,
// through a link in the image. Firefox has its lock-down in the image.
const policies = "/etc/chromium/policies/managed/caponier.json"

// program is the browser of this image and how it is started.
func program(profile string) (name string, args []string, err error) {
	if _, err := os.Stat(chromium); err != nil {
		return firefox, []string{"--profile", profile, "--no-remote", "--new-instance"}, nil
	}
	if _, err := os.Stat(policies); err != nil { // it would run without any
		return "", nil, fmt.Errorf("chromium has no policies: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(profile, "Default"), 0o700); err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(filepath.Join(profile, "Default", "Preferences"), []byte(preferences), 0o600); err != nil {
		return "", nil, err
	}
	args = []string{"--user-data-dir=" + profile}
	args = append(args, strings.Fields(chromiumFlags)...)
	// As an F11 pressed: in kiosk mode it has no developer tools.
	if os.Getenv("CAPONIER_TOOLS") != "" {
		args = append(args, "--start-fullscreen")
	} else {
		args = append(args, "--kiosk")
	}
	if !namespaces() {
		args = append(args, "--no-sandbox")
	}
	return chromium, args, nil
}

// preferences of Chromium that have no policy: the file dialog opens where the
// user's files are.
const preferences = `{"selectfile": {"last_directory": "` + folder + `"}}`

// chromiumFlags: all of the screen, software rendering, as few processes as
// there can be, and nothing for its maker. What updates components anyway is
// sent to the parked page's host, which the carrier answers itself.
const chromiumFlags = `--no-first-run --no-default-browser-check --password-store=basic --ozone-platform=x11
	--disable-gpu --in-process-gpu --disable-background-networking --disable-component-update --disable-domain-reliability
	--disable-breakpad --disable-crash-reporter --disable-sync --no-pings --no-service-autorun
	--disable-search-engine-choice-screen --force-prefers-reduced-motion --disable-smooth-scrolling
	--hide-crash-restore-bubble --noerrdialogs --component-updater=url-source=http://park.caponier.internal/
	--enable-features=NetworkServiceInProcess2
	--disable-features=PreloadTopChromeWebUI,InitialWebUI,WebUIReloadButton,WebUIToolbar,WebUIOmniboxPopup,NetworkTimeServiceQuerying,OptimizationHints,OptimizationGuideModelDownloading,OptimizationGuideOnDeviceModel,MediaRouter,Translate,LensOverlay,ReadAnythingPreload,SegmentationPlatform`

// namespaces reports whether processes here may make user namespaces, which
// Chromium's own sandbox needs: it does with a seccomp profile that permits it.
func namespaces() bool {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	return cmd.Run() == nil
}
