use super::*;

fn problems(text: &str) -> Vec<String> {
    match Config::check(text, Path::new("/n/basalt.toml")) {
        Ok(_) => Vec::new(),
        Err(err) => err.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn defaults_are_within_their_bounds() {
    for setting in SETTINGS {
        let default = (setting.default)();
        if let (Kind::Integer { min, max } | Kind::Bytes { min, max }, Value::Integer(value)) = (setting.kind, &default)
        {
            assert!((min..=max).contains(value), "[{}] {}", setting.section, setting.key);
        }
        // A default that is written into the file by hand says the same.
        let text = format!("[{}]\n{} = {default}\n", setting.section, setting.key);
        let settings = Settings::check(&text, Path::new("x"), &[SETTINGS], &|_| None).unwrap();
        assert_eq!(settings.get(setting.section, setting.key), Some(&default));
    }
}

#[test]
fn empty_file_is_the_default_of_the_stores() {
    let config = Config::default();
    let store = StoreOptions::default();
    assert_eq!(format!("{:?}", config.datastore.store), format!("{store:?}"));
    assert_eq!(config.datastore.batch_bytes_max, DatastoreOptions::default().batch_bytes_max);
    assert_eq!(config.shards, None);
}

#[test]
fn every_key_reaches_the_config() {
    // Each key set to something else than its default must show in the typed config: a row that nobody reads would be a lie.
    let plain = format!("{:?}", Config::default());
    for setting in SETTINGS {
        let value = match (setting.kind, (setting.default)()) {
            (Kind::Bool, Value::Bool(value)) => Value::Bool(!value),
            (Kind::Integer { min, max } | Kind::Bytes { min, max }, Value::Integer(value)) => {
                Value::Integer(if value == min { max } else { min })
            }
            (Kind::Choice(words), Value::Text(value)) => {
                Value::Text(words.iter().find(|word| **word != value).unwrap().to_string())
            }
            (Kind::Text, _) => Value::Text("/else/where".into()),
            (Kind::List, _) => Value::List(vec!["other".into()]),
            (kind, value) => panic!("{kind:?} has the default {value}"),
        };
        let config =
            Config::check(&format!("[{}]\n{} = {value}", setting.section, setting.key), Path::new("x")).unwrap();
        assert_ne!(format!("{config:?}"), plain, "[{}] {}", setting.section, setting.key);
    }
}

#[test]
fn unknown_key_is_refused_with_the_nearest_known() {
    assert_eq!(
        problems("[node]\n\ndurabilty = \"strict\"\n"),
        ["/n/basalt.toml:3: unknown key 'durabilty' in [node]: did you mean 'durability'?"]
    );
    assert_eq!(problems("[nod]\nshards = 1"), ["/n/basalt.toml:1: unknown section [nod]: did you mean 'node'?"]);
    assert_eq!(
        problems("durability = 'strict'"),
        ["/n/basalt.toml:1: 'durability' stands outside of its section: write it below a line [node]"]
    );
    assert!(problems("[zzzzzzzz]")[0].ends_with("the sections known here are limits, node, scrub, sockets, store"));
}

#[test]
fn bad_value_is_refused_with_what_is_allowed() {
    assert_eq!(
        problems("[node]\ndurability = \"fast\""),
        ["/n/basalt.toml:2: [node] durability can't be \"fast\": write one of \"strict\", \"ordered\", \"relaxed\""]
    );
    assert_eq!(
        problems("[store]\ncompact_dead_percent = 100"),
        ["/n/basalt.toml:2: [store] compact_dead_percent can't be 100: write a whole number from 1 to 99"]
    );
    for bad in ["-1", "1.5", "true", "\"12 parsecs\"", "\"99999999999 TiB\"", "[1]", "\"1 MB\""] {
        let problems = problems(&format!("[limits]\nvalue_bytes_max = {bad}"));
        assert_eq!(problems.len(), 1, "{bad}");
        assert!(problems[0].contains(bad) && problems[0].ends_with("\"4 MiB\" to \"1 GiB\""), "{}", problems[0]);
    }
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_file() {
    let found = problems("[store]\nsegment_bytes = 1\nx = 1\n[node]\nshards = -2\n");
    let lines: Vec<_> = found.iter().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["2", "3", "5"]);
}

#[test]
fn what_is_no_toml_names_its_line() {
    let found = problems("[node]\nshards = = 4\n");
    assert!(found[0].starts_with("/n/basalt.toml:2: not TOML: "), "{found:?}");
}

#[test]
fn bytes_take_a_unit() {
    let config = Config::check("[limits]\nvalue_bytes_max = \"8 MiB\"", Path::new("x")).unwrap();
    assert_eq!(config.datastore.store.value_bytes_max, 8 << 20);
}

#[test]
fn environment_goes_over_the_file() {
    let environment = |name: &str| match name {
        "BASALT_NODE_DURABILITY" => Some("relaxed".to_owned()),
        "BASALT_SOCKETS_ALLOW_UIDS" => Some("ipfs, 1001".to_owned()),
        _ => None,
    };
    let text = "[node]\ndurability = \"strict\"";
    let settings = Settings::check(text, Path::new("x"), &[SETTINGS], &environment).unwrap();
    let config = Config::from_settings(&settings);
    assert_eq!(config.datastore.durability, Durability::Relaxed);
    assert_eq!(config.sockets.data_access.uids, ["ipfs", "1001"]);

    let bad = |name: &str| (name == "BASALT_NODE_SHARDS").then(|| "many".to_owned());
    let err = Settings::check("", Path::new("x"), &[SETTINGS], &bad).unwrap_err();
    assert_eq!(
        err.to_string(),
        "environment variable BASALT_NODE_SHARDS: [node] shards can't be 'many': write a whole number from 0 to 4096"
    );
}

#[test]
fn tables_of_another_reader_are_checked_together() {
    const HOST: &[Setting] = &[Setting {
        section: "log",
        key: "format",
        kind: Kind::Choice(&["text", "json"]),
        default: || Value::Text("text".to_owned()),
        reload: true,
        about: "",
    }];
    let text = "[log]\nformat = \"json\"\n[node]\nshards = 3";
    let settings = Settings::check(text, Path::new("x"), &[SETTINGS, HOST], &|_| None).unwrap();
    assert_eq!(settings.text("log", "format"), "json");
    assert_eq!(Config::from_settings(&settings).shards, Some(3));
    // A host that does not bring the agent's table passes over what is the agent's, and nothing else.
    assert_eq!(Config::check(text, Path::new("x")).unwrap().shards, Some(3));
    assert_eq!(
        problems("[logs]\nformat = \"json\""),
        ["/n/basalt.toml:1: unknown section [logs]: the sections known here are limits, node, scrub, sockets, store"]
    );
}

#[test]
fn reference_has_a_row_for_every_key() {
    let page = reference(&[SETTINGS]);
    for setting in SETTINGS {
        assert!(page.contains(&format!("| `{}` |", setting.key)), "{}", setting.key);
    }
    assert!(page.contains("| `segment_bytes` | `\"256 MiB\"` |"), "{page}");
}
