"""A release in a repository of Hugging Face's hub: its files as they are, the card as its page, versions as tags.

One commit brings all files and takes away those that the release does not have; the tag vVERSION is written after it. The
token is the hub's own matter: HF_TOKEN, or what `hf auth login` keeps; it is never read, shown or written here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import ConfigError, MissingExtraError, ReleaseError
from fedlora.identity.keys import PublicKey
from fedlora.release.folder import read_plain_release
from fedlora.release.layout import ADAPTER, BOM, BUNDLE, CARD, ENVELOPE
from fedlora.release.sealed import SignedRelease

from fedlora_server.distribution.bounded_answers import Answers, bounded_hub

_TAG = re.compile(r"v([0-9]{1,9})")
_OURS = re.compile(
    rf"{ADAPTER}/[^/]+|[a-z]+\.onnx_adapter(\.json)?|" + "|".join(map(re.escape, (CARD, BOM, ENVELOPE, BUNDLE)))
)
_KEPT = ".gitattributes"  # the hub's own


@dataclass(frozen=True, slots=True)
class HubRepository:
    """OWNER/NAME on the hub, or on another one that speaks as it does (HF_ENDPOINT)."""

    repo_id: str
    private: bool = False

    def publish(self, folder: Path, trusted: Iterable[PublicKey]) -> SignedRelease:
        """Upload a release that one of `trusted` signed.

        Raises ReleaseError where its version or a newer one is there, or files that are of no release, or the hub refuses.
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
            with bounded_hub(Answers()):
                api.create_repo(self.repo_id, private=self.private, exist_ok=True)
                _check_newer(self.repo_id, version, [ref.name for ref in api.list_repo_refs(self.repo_id).tags])
                there = set(api.list_repo_files(self.repo_id)) - {_KEPT}
                _check_is_ours(self.repo_id, there)
                gone = sorted(there - set(paths))
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


def _check_newer(repo_id: str, version: int, tags: Iterable[str]) -> None:
    """As in a channel of `fedlora publish`: what is newest is what was published last."""
    newest = max((int(found[1]) for tag in tags if (found := _TAG.fullmatch(tag))), default=0)
    if version == newest:
        raise ReleaseError(f"{repo_id}: it has a tag v{version} already; make the release again, with a higher version")
    if version < newest:
        raise ReleaseError(
            f"{repo_id}: it gives out v{newest} already, and this is v{version}; make the release again, with a higher "
            "version"
        )


def _check_is_ours(repo_id: str, there: Collection[str]) -> None:
    """A commit takes away what the release does not have: only what another release has put there."""
    strange = sorted(path for path in there if not _OURS.fullmatch(path)) if ENVELOPE in there else sorted(there)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ReleaseError(
            f"{repo_id}: it holds {strange[0]!a:.80}{more}, which no release has put there and publishing would delete; "
            "expected an empty repository, or one of releases alone: name another OWNER/NAME"
        )
