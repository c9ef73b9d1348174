package target

import (
	"context"
	"errors"
	"testing"

	"caponier/core/internal/api"
)

// Where a stored secret goes is decided only by somebody who may manage secrets.
func TestPlacingSecretsNeedsTheirPermission(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "vpc-a")
		plain := api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_t", UserName: "t", Permissions: map[api.Permission]bool{api.TargetsManage: true}})
		withSecret := []Account{{Name: "root", Auth: AuthPassword, SecretID: "sec_pw"}}
		spec := func(name string) Target {
			return Target{Name: name, Kind: SSH, Site: "vpc-a", Host: "10.10.0.5", Port: 22}
		}
		guarded, err := r.Create(r.ctx, spec("guarded"), withSecret)
		if err != nil {
			t.Fatal(err)
		}
		open, err := r.Create(plain, spec("open"), []Account{{Name: "root", Auth: AuthCertificate}})
		if err != nil {
			t.Fatalf("a target without secrets: %v", err)
		}
		move := func(ctx context.Context, id string) error {
			_, err := r.Update(ctx, id, nil, func(t *Target) { t.Host = "10.10.0.66" })
			return err
		}
		for _, c := range []struct {
			name string
			err  error
		}{
			{"create", func() error { _, err := r.Create(plain, spec("mine"), withSecret); return err }()},
			{"attach", func() error {
				_, err := r.CreateAccount(plain, open.ID, Account{Name: "x", Auth: AuthPassword, SecretID: "sec_pw"})
				return err
			}()},
			{"move", move(plain, guarded.ID)},
			{"trust", func() error {
				_, err := r.Update(plain, guarded.ID, nil, func(t *Target) { t.HostKeyPolicy = HostKeyPinned })
				return err
			}()},
			{"forget", r.ForgetHostKeys(plain, guarded.ID, "")},
			{"import", func() error {
				_, err := r.Import(plain, "text/csv", []byte("name,host,site,accounts\nm,10.10.0.9,vpc-a,root:password:"+"sec_pw"+"\n"), ImportOptions{})
				return err
			}()},
			{"import over", func() error {
				_, err := r.Import(plain, "text/csv", []byte("name,host,site\nguarded,10.10.0.66,vpc-a\n"), ImportOptions{Existing: ExistingUpdate})
				return err
			}()},
		} {
			if p, ok := errors.AsType[*api.Problem](c.err); !ok || p.Code != "needs_secrets_manage" {
				t.Errorf("%s: %v, want a refusal", c.name, c.err)
			}
		}
		if err := move(r.ctx, guarded.ID); err != nil {
			t.Errorf("with secrets:manage: %v", err)
		}
		if err := move(plain, open.ID); err != nil {
			t.Errorf("a target without secrets: %v", err)
		}
		_, err = r.Update(plain, guarded.ID, nil, func(t *Target) { t.Comment = "rack 7" })
		if err != nil {
			t.Errorf("a comment: %v", err)
		}
	})
}
