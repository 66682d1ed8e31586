//! A TPM (swtpm, driven by tpm2-tools) as second computer of the policy digests. Left out, with a line saying so,
//! where these are not installed.

use holdfast_format::{keys, pcr, policy};
use p256::ecdsa::{Signature, SigningKey};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Tpm {
    swtpm: Child,
    dir: tempfile::TempDir,
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
    }
}

impl Tpm {
    fn start() -> Option<Tpm> {
        let installed =
            |t: &str| std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join(t).exists());
        if let Some(missing) = ["swtpm", "tpm2_startup"].into_iter().find(|t| !installed(t)) {
            eprintln!("left out: {missing} is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n).to_str().unwrap().to_owned();
        let swtpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", at(""))])
            .args(["--server", &format!("type=unixio,path={}", at("sock"))])
            .args(["--ctrl", &format!("type=unixio,path={}", at("sock.ctrl"))])
            .args(["--flags", "startup-clear,not-need-init"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tpm = Tpm { swtpm, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !tpm.file("sock").exists() {
            assert!(Instant::now() < deadline, "swtpm did not open its socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(tpm)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, data: &[u8]) {
        std::fs::write(self.file(name), data).unwrap();
    }

    fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    /// Runs `tpm2_TOOL ARGS` in the directory of its files; whether it succeeded, and what it said.
    fn run(&self, tool: &str, args: &str) -> (bool, String) {
        let tcti = format!("swtpm:path={}", self.file("sock").display());
        let out = Command::new(format!("tpm2_{tool}"))
            .args(args.split_ascii_whitespace())
            .env("TPM2TOOLS_TCTI", tcti)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        // The socket has no resource manager: drop what the tool left in the TPM, keep saved sessions.
        if tool != "flushcontext" {
            self.run("flushcontext", "-t");
        }
        (out.status.success(), text)
    }

    fn ok(&self, tool: &str, args: &str) -> String {
        let (ok, text) = self.run(tool, args);
        assert!(ok, "tpm2_{tool} {args}: {text}");
        text
    }
}

fn der(signature: &[u8]) -> Vec<u8> {
    Signature::from_slice(signature).unwrap().to_der().as_bytes().to_vec()
}

#[test]
fn the_tpm_reaches_the_policies_that_were_computed_offline() {
    let Some(tpm) = Tpm::start() else { return };
    let epoch = 2;
    // A machine whose PCR 11 is what two extends make of it, and which has committed epochs 0 to 2.
    let words = [pcr::phase_digest("uki"), pcr::phase_digest(pcr::phase::ENTER_PID1)];
    for w in words {
        tpm.ok("pcrextend", &format!("11:sha256={}", hex::encode(w)));
    }
    let pcr11 = words.iter().fold(pcr::ZERO, |p, w| pcr::extend(&p, w));
    let index = format!("{:#010x}", policy::EPOCH_INDEX);
    tpm.ok("nvdefine", &format!("{index} -C o -s 8 -a nt=bits|ownerwrite|ownerread|authread|policyread|no_da"));
    tpm.ok("nvsetbits", &format!("{index} -C o -i 0x{:x}", policy::epoch_bit(0) | policy::epoch_bit(epoch)));
    let public = tpm.ok("nvreadpublic", &index);
    let name = hex::encode(policy::nv_name(policy::EPOCH_INDEX, policy::EPOCH_ATTRIBUTES));
    assert!(public.contains(&name), "name {name}: {public}");

    let key = SigningKey::from_slice(&[3; 32]).unwrap();
    let signed = policy::SignedPolicies::sign(&pcr11, epoch, &key);
    tpm.put("key.pem", keys::public_pem(key.verifying_key()).unwrap().as_bytes());
    tpm.ok("loadexternal", "-C o -G ecc -u key.pem -a sign|userwithauth -c key.ctx -n key.name");
    assert_eq!(tpm.get("key.name"), policy::authority_name(key.verifying_key()));

    for (policy_ref, with_epoch) in [(policy::POLICY_REF, true), (policy::POLICY_REF_NO_EPOCH, false)] {
        let approved = signed.approved(policy_ref, key.verifying_key()).unwrap();
        tpm.put("approved", &approved.policy);
        tpm.put("ref", &approved.policy_ref);
        tpm.put("message", &[&approved.policy[..], &approved.policy_ref].concat());
        tpm.put("signature", &der(&[approved.r, approved.s].concat()));
        tpm.ok("verifysignature", "-c key.ctx -g sha256 -m message -s signature -f ecdsa -t ticket");
        tpm.ok("startauthsession", "--policy-session -g sha256 -S session");
        tpm.ok("policypcr", "-S session -l sha256:11,12,13 -L reached");
        if with_epoch {
            tpm.put("operand", &policy::epoch_operand(epoch));
            tpm.ok("policynv", &format!("-S session -C {index} -i operand {index} bc -L reached"));
        }
        assert_eq!(hex::encode(tpm.get("reached")), hex::encode(approved.policy), "{policy_ref}");
        tpm.ok("policyauthorize", "-S session -i approved -q ref -n key.name -t ticket -L authorized");
        let sealed_under =
            policy::policy_authorize(&policy::authority_name(key.verifying_key()), policy_ref.as_bytes());
        assert_eq!(hex::encode(tpm.get("authorized")), hex::encode(sealed_under), "{policy_ref}");
        tpm.ok("flushcontext", "session");
    }

    // Once a later epoch is committed, this image's check fails.
    tpm.ok("nvsetbits", &format!("{index} -C o -i 0x{:x}", policy::epoch_bit(epoch + 1)));
    tpm.ok("startauthsession", "--policy-session -g sha256 -S session");
    let (passed, text) = tpm.run("policynv", &format!("-S session -C {index} -i operand {index} bc"));
    assert!(!passed, "an older epoch was accepted: {text}");
}
