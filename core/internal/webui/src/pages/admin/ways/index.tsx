import { Page } from "~/ui/Page";
import { Authorities } from "./Authorities";
import { Providers } from "./Providers";

export default function SignIn() {
  return (
    <Page title="Sign-in" hint="Ways into the console beside passwords and passkeys. Who adds one decides who comes in as whom: changing them needs every permission.">
      <Providers />
      <Authorities />
    </Page>
  );
}
