import "./base";
import { lazy, StrictMode, Suspense } from "react";
import { createRoot } from "react-dom/client";
import { Frame } from "./Frame";
import { Loading, Unreachable } from "./Unreachable";
import { SessionGate } from "./session";

// Two halves: what a stranger loads (small), and the console itself.
const SignIn = lazy(() => import("~/pages/signin"));
const FirstRun = lazy(() => import("~/pages/firstrun"));
const Console = lazy(() => import("./Console"));

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
      <Suspense fallback={<Loading />}>
        <SessionGate
          loading={<Loading />}
          failed={(error, again) => <Unreachable error={error} again={again} />}
          signIn={(done, why) => (location.pathname.startsWith("/setup") ? <FirstRun done={done} /> : <SignIn done={done} why={why} />)}
        >
          <Console />
        </SessionGate>
      </Suspense>
    </Frame>
  </StrictMode>,
);
