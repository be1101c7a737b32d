//! What a container made from an image may do, unless it is told otherwise: what Docker allows.

use crate::spec::defaults;
use serde_json::{Value, json};

/// config.json without what the image and the caller say.
pub(super) fn config() -> Value {
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": defaults::mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": defaults::namespaces(),
            "maskedPaths": defaults::MASKED_PATHS,
            "readonlyPaths": defaults::READONLY_PATHS
        }
    })
}
