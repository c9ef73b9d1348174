import "./base";
import { lazy, StrictMode, Suspense } from "react";
import { createRoot } from "react-dom/client";
import { Frame } from "./Frame";
import FirstRun from "~/pages/firstrun";
import SignIn from "~/pages/signin";
import { SessionGate, wasSignedIn } from "./session";
import { Splash } from "./Splash";
import { Unreachable } from "./Unreachable";

// Two halves: what a stranger loads (small, in one file), and the console
// itself, which loads while core is asked where somebody was signed in before.
const loadConsole = () => import("./Console");
const Console = lazy(loadConsole);
if (wasSignedIn()) void loadConsole();

const root = document.getElementById("root");
if (!root) throw new Error("index.html has no #root");

// A page of an older version may ask for files that a newer core does not have.
window.addEventListener("vite:preloadError", (e) => {
  if (sessionStorage.getItem("reloaded") === location.href) return;
  e.preventDefault();
  sessionStorage.setItem("reloaded", location.href);
  location.reload();
});

createRoot(root).render(
  <StrictMode>
    <Frame>
      <Suspense fallback={<Splash />}>
        <SessionGate
          loading={<Splash />}
          failed={(error, again) => <Unreachable error={error} again={again} />}
          signIn={(done, why) => (location.pathname.startsWith("/setup") ? <FirstRun done={done} /> : <SignIn done={done} why={why} />)}
        >
          <Console />
        </SessionGate>
      </Suspense>
    </Frame>
  </StrictMode>,
);
