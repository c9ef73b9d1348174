import { useEffect, useState } from "react";
import { type ApiError, api, asError, ask, type Schemas } from "~/api/client";
import { Splash } from "~/app/Splash";
import FirstRun from "~/pages/firstrun";
import { Card } from "./Card";
import { Form } from "./Form";
import { Returning } from "./Returning";

export type Options = Schemas["GetLoginOptionsOptionsOutputBody"];

interface Props {
  done: () => Promise<void>;
  why?: string;
}

// SignIn is what a stranger sees: the form; the first-run page while there is
// no administrator; or the way back from a provider or the certificate door.
export default function SignIn({ done, why }: Props) {
  const [options, setOptions] = useState<Options>();
  const [error, setError] = useState<ApiError>();
  const [back, setBack] = useState(() => /^\/sign-in\/(?:sso\/([a-z0-9-]+)|certificate)$/.exec(location.pathname));
  useEffect(() => {
    let gone = false;
    ask(api.GET("/login/options")).then((o) => !gone && setOptions(o), (e: unknown) => !gone && setError(asError(e)));
    return () => {
      gone = true;
    };
  }, []);
  if (back) {
    const leave = () => {
      history.replaceState(null, "", "/sign-in");
      setBack(null);
    };
    return <Returning provider={back[1]} done={done} leave={leave} />;
  }
  if (options?.setup) return <FirstRun done={done} />;
  if (!options && !error) return <Splash />;
  return (
    <Card title="Sign in" hint={why}>
      <Form options={options} done={done} trouble={error} />
    </Card>
  );
}
