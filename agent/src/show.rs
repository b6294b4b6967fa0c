//! `basalt config check` and `show`.

use std::path::Path;

use serde_json::json;

use crate::{
    cli::{Cli, ConfigSource},
    config::{Loaded, TABLES},
    exit::{Exit, Failure, Outcome},
    say::say,
};

/// Says what is wrong in a file; the environment is left out, it belongs to this shell and not to the file.
pub fn check(cli: &Cli, file: Option<&Path>, as_json: bool) -> Outcome {
    let path = match file {
        Some(file) => file.to_path_buf(),
        None => cli.node()?.join(basalt_node::config::FILE_NAME),
    };
    let text = std::fs::read_to_string(&path).map_err(|err| Failure::io(format!("read {}", path.display()), err))?;
    let checked = Loaded::check(path.clone(), &text, &|_| None);
    if as_json {
        let mistakes: Vec<_> = checked
            .as_ref()
            .err()
            .map(ToString::to_string)
            .iter()
            .flat_map(|all| all.lines())
            .map(str::to_owned)
            .collect();
        say!("{}", json!({ "file": path, "right": checked.is_ok(), "mistakes": mistakes }));
        // Its mistakes are told already.
        return checked.map(|_| ()).map_err(|_| Failure::new(""));
    }
    match checked {
        Ok(_) => {
            say!("{} is right", path.display());
            Ok(())
        }
        Err(err) => Err(Failure { exit: Exit::Failure, message: format!("the config is wrong:\n{err}") }),
    }
}

/// Every setting, and who set it.
pub fn show(node: &Path, source: &ConfigSource, as_json: bool) -> Outcome {
    let loaded = Loaded::load(node, source)?;
    let settings = || TABLES.iter().flat_map(|table| table.iter());
    if as_json {
        let rows: Vec<_> = settings()
            .map(|setting| {
                json!({
                    "section": setting.section,
                    "key": setting.key,
                    "value": loaded.settings.get(setting.section, setting.key).map(ToString::to_string),
                    "from": loaded.origin(setting, source),
                })
            })
            .collect();
        say!("{}", json!({ "file": loaded.path, "settings": rows }));
        return Ok(());
    }
    let mut section = "";
    for setting in settings() {
        if setting.section != section {
            say!("{}[{}]", if section.is_empty() { "" } else { "\n" }, setting.section);
            section = setting.section;
        }
        let Some(value) = loaded.settings.get(setting.section, setting.key) else { continue };
        say!("{:<45} # {}", format!("{} = {value}", setting.key), loaded.origin(setting, source));
    }
    Ok(())
}
