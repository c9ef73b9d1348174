import SignIn from "~/pages/signin";

export default function FirstRun({ done }: { done: () => Promise<void> }) {
  return <SignIn done={done} />;
}
