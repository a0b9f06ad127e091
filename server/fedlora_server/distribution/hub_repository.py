"""A release in a repository of Hugging Face's hub: its files as they are, the card as its page, versions as tags.

One commit brings all files and takes away those that the release does not have; the tag vVERSION is written after it. The
token is the hub's own matter: HF_TOKEN, or what `hf auth login` keeps; it is never read, shown or written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import ConfigError, MissingExtraError, ReleaseError
from fedlora.identity.keys import PublicKey
from fedlora.release.folder import read_plain_release
from fedlora.release.layout import BUNDLE, ENVELOPE
from fedlora.release.sealed import SignedRelease

_KEPT = ".gitattributes"  # the hub's own


@dataclass(frozen=True, slots=True)
class HubRepository:
    """OWNER/NAME on the hub, or on another one that speaks as it does (HF_ENDPOINT)."""

    repo_id: str
    private: bool = False

    def publish(self, folder: Path, trusted: Iterable[PublicKey]) -> SignedRelease:
        """Upload a release that one of `trusted` signed.

        Raises ReleaseError where its version is there, or the hub refuses.
        """
        try:
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ModuleNotFoundError:
            raise MissingExtraError(
                "the hub needs the package huggingface_hub; install it with: pip install 'fedlora[hub]'"
            ) from None
        release = read_plain_release(folder, trusted)
        version, name = release.manifest.version, release.manifest.name
        paths = [ENVELOPE, *sorted(release.manifest.files), *([BUNDLE] if (folder / BUNDLE).is_file() else [])]
        api = HfApi(library_name="fedlora")
        disable_progress_bars()
        try:
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if f"v{version}" in {ref.name for ref in api.list_repo_refs(self.repo_id).tags}:
                raise ReleaseError(
                    f"{self.repo_id}: it has a tag v{version} already; make the release again, with a higher version"
                )
            gone = sorted(set(api.list_repo_files(self.repo_id)) - {*paths, _KEPT})
            commit = api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in paths),
                    *(CommitOperationDelete(path_in_repo=path) for path in gone),
                ],
                commit_message=f"{name} {version}",
            )
            api.create_tag(
                self.repo_id, tag=f"v{version}", revision=commit.oid, tag_message=f"signed by {release.signer}"
            )
        except HFValidationError as error:
            raise ConfigError(f"{self.repo_id!r:.120}: {error!s:.200}; expected OWNER/NAME") from None
        except ReleaseError:
            raise
        except Exception as error:  # the client's, its transport's, its storage's: they have no common root
            raise ReleaseError(
                f"{self.repo_id}: the hub cannot be written to: {type(error).__name__}: {error!s:.300}; mend that, or "
                "log in with: hf auth login"
            ) from None
        return release
