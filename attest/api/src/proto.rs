//! The messages of the EVE device API, generated from this crate's `proto/` folder, one module per protobuf package.
//!
//! `org.lfedge.eve.config.EdgeDevConfig` is [`config::EdgeDevConfig`] here. Field names are in snake case
//! (`protectedPayload` is `protected_payload`); an enum field holds the number and has a getter of the same name
//! that falls back to the zero value for a number this device does not know.

#![allow(missing_docs, clippy::all, rustdoc::all)] // generated code: what there is to say stands in the .proto files

macro_rules! package {
    ($module:ident, $file:literal) => {
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}

package!(attest, "org.lfedge.eve.attest.rs");
package!(auth, "org.lfedge.eve.auth.rs");
package!(certs, "org.lfedge.eve.certs.rs");
package!(common, "org.lfedge.eve.common.rs");
package!(config, "org.lfedge.eve.config.rs");
package!(flowlog, "org.lfedge.eve.flowlog.rs");
package!(hardwarehealth, "org.lfedge.eve.hardwarehealth.rs");
package!(info, "org.lfedge.eve.info.rs");
package!(logs, "org.lfedge.eve.logs.rs");
package!(metrics, "org.lfedge.eve.metrics.rs");
package!(nestedappinstancemetrics, "org.lfedge.eve.nestedappinstancemetrics.rs");
package!(profile, "org.lfedge.eve.profile.rs");
package!(proxy, "org.lfedge.eve.proxy.rs");
package!(register, "org.lfedge.eve.register.rs");
package!(uuid, "org.lfedge.eve.uuid.rs");
