import { api, ask, type Schemas } from "~/api/client";

// Proposal is a rule for requests that were refused.
export type Proposal = Schemas["WebaccessProposal"];

const at = (id: string) => ({ params: { path: { id } } });

export const readProposals = async (id: string): Promise<Proposal[]> => (await ask(api.GET("/targets/{id}/web-proposals", at(id)))).proposals ?? [];
export const clearProposals = (id: string) => ask(api.DELETE("/targets/{id}/web-proposals", at(id)));
