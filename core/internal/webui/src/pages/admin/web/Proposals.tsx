import { Alert, Button, Group, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Ago } from "~/ui/Time";
import { ErrorBox } from "~/ui/ErrorBox";
import table from "../parts/Table.module.css";
import { clearProposals, readProposals } from "./api";
import type { Rule } from "./recipe";
import { ruleText } from "./rules";

// Proposals are rules for what sessions were refused while the target learned.
export function Proposals({ id, has, take }: { id: string; has: (r: Rule) => boolean; take: (rules: Rule[]) => void }) {
  const q = useQuery({ queryKey: ["web_proposals", id], queryFn: () => readProposals(id), staleTime: 0 });
  if (q.error) return <ErrorBox error={q.error} again={() => void q.refetch()} />;
  const rows = q.data ?? [];
  if (rows.length === 0) return <Alert variant="light" color="gray" p="xs">Nothing was refused yet. Open the target, use it as people will, and come back.</Alert>;
  const fresh = rows.filter((p) => !has(p.rule));
  return (
    <div>
      <Group justify="space-between" mb={4}>
        <Text fw={500} size="sm">Refused so far</Text>
        <Group gap="xs">
          {fresh.length > 1 && <Button size="compact-xs" variant="default" onClick={() => take(fresh.map((p) => p.rule))}>Allow all {fresh.length}</Button>}
          <Button size="compact-xs" variant="default" onClick={() => void clearProposals(id).then(() => q.refetch())}>Forget these</Button>
        </Group>
      </Group>
      <div className={table.scroll}>
        <table className={table.plain}>
          <thead><tr><th scope="col">Rule</th><th scope="col">Times</th><th scope="col">Last</th><th scope="col" data-end>Allow</th></tr></thead>
          <tbody>
            {rows.map((p) => (
              <tr key={JSON.stringify(p.rule)}>
                <td><b className="mono">{ruleText(p.rule)}</b>{p.example_url && <Text size="xs" c="dimmed" className="mono" style={{ overflowWrap: "anywhere" }}>{p.example_url}</Text>}</td>
                <td className="nums">{p.count}</td>
                <td><Ago at={p.last_at} /></td>
                <td data-end>{has(p.rule) ? <Text size="xs" c="dimmed">In the list</Text> : <Button size="compact-xs" onClick={() => take([p.rule])} aria-label={`Allow ${ruleText(p.rule)}`}>Allow</Button>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Text size="xs" c="dimmed" mt={4}>Allowed ones take effect when you save.</Text>
    </div>
  );
}
