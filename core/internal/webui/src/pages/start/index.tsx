import { Empty } from "~/ui/Empty";
import { Page } from "~/ui/Page";

export default function Start() {
  return (
    <Page title="Overview">
      <Empty title="This page is being made">Until then, use the caponier command.</Empty>
    </Page>
  );
}
