import { Chip, Fieldset, Group, Select, SimpleGrid, Stack, Text, TextInput } from "@mantine/core";
import { dayNames, daysText, type WindowForm } from "./window";

const zones = Intl.supportedValuesOf("timeZone");
const here = Intl.DateTimeFormat().resolvedOptions().timeZone;

interface Props {
  v: WindowForm;
  set: (w: WindowForm) => void;
  at: (field: string) => string | undefined;
  floating?: boolean;
}

// WindowFields asks when something holds.
export function WindowFields({ v, set, at, floating }: Props) {
  const error = at("window");
  const change = (c: Partial<WindowForm>) => set({ ...v, ...c });
  return (
    <Fieldset legend="When" variant="default" p="md">
      <Stack gap="sm">
        <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
          <TextInput type="datetime-local" label="Not before" description="Your time; empty: now." value={v.notBefore} onChange={(e) => change({ notBefore: e.currentTarget.value })} />
          <TextInput type="datetime-local" label="Not after" description="Empty: without an end." value={v.notAfter} onChange={(e) => change({ notAfter: e.currentTarget.value })} />
        </SimpleGrid>
        <div>
          <Text size="sm" fw={500} id="window-days" mb={4}>Days</Text>
          <Chip.Group multiple value={v.days} onChange={(days) => change({ days })}>
            <Group gap={6} role="group" aria-labelledby="window-days">{dayNames.map((d) => <Chip key={d} value={d} size="xs" radius="sm">{daysText([d])}</Chip>)}</Group>
          </Chip.Group>
          <Text size="xs" c="dimmed" mt={4}>None chosen: every day.</Text>
        </div>
        <SimpleGrid cols={{ base: 2, xs: floating ? 4 : 3 }} spacing="sm">
          <TextInput type="time" label="From" value={v.from} onChange={(e) => change({ from: e.currentTarget.value, zone: v.zone || here })} />
          <TextInput type="time" label="To" value={v.to} onChange={(e) => change({ to: e.currentTarget.value, zone: v.zone || here })} />
          <Select label="Time zone" data={zones} value={v.zone || null} onChange={(z) => change({ zone: z ?? "" })} searchable clearable placeholder="UTC" limit={60} />
          {floating && <TextInput label="Floating" placeholder="8h" value={v.floating} onChange={(e) => change({ floating: e.currentTarget.value })} />}
        </SimpleGrid>
        {floating && <Text size="xs" c="dimmed">Floating: it holds for that long from the first use on, then ends.</Text>}
        {error && <Text size="sm" c="var(--bad)" role="alert">{error}</Text>}
      </Stack>
    </Fieldset>
  );
}
