// Read by Firefox from defaults/pref: names the file that locks it down.
pref("general.config.filename", "caponier.cfg");
pref("general.config.obscure_value", 0);
pref("general.config.sandbox_enabled", false);
