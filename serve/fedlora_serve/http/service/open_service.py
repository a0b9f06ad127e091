"""The service of one base pack, as its configuration says: engine, adapters, template, counters."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fedlora.base.pack import CONFIG, find_pack
from fedlora.data.chat_template import ChatTemplate, chat_settings_of, template_of
from fedlora.errors import ConfigError, PackError
from fedlora.family import DecoderShape, EncoderShape, model_shape
from fedlora.files.documents import read_object
from fedlora.peft.finding import find_adapter

from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.adapters.signed import SignedNames, read_signed_names
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.engine import BatchEngine
from fedlora_serve.classification import Classifier
from fedlora_serve.embedding import Embedder
from fedlora_serve.http.access.keys import Keys
from fedlora_serve.http.service.adapter_folder import AdapterFolder
from fedlora_serve.http.service.adapter_templates import AdapterTemplates, template_file
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.metrics import Metrics, StatsCollector
from fedlora_serve.http.service.releases_watch import ReleasesWatch
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.text.model_defaults import ModelDefaults, model_defaults


def open_service(base: str | Path, config: ServeConfig) -> ServiceState:
    """Everything that answers requests, ready. Raises FedloraError, before it takes long wherever that can be.

    A decoder is served from its graph `kernel` or `rows`, an encoder from its graph `compat`.
    """
    directory = find_pack(base).resolve()  # a folder of the name `nano` is not the embedded one
    base_name = config.served_model_name or directory.name
    if base_name in config.adapters:
        raise ConfigError(f"{base_name!r} is the base's name; give the adapter another one, or set --served-model-name")
    folder = AdapterFolder(Path(config.adapter_folder)) if config.adapter_folder else None
    shape = model_shape(read_object(directory / CONFIG, PackError, "a model's config.json"), str(directory / CONFIG))
    signed = read_signed_names(config.require_signed, config.release_keys)
    service = (_decoder if isinstance(shape, DecoderShape) else _encoder)(directory, config, base_name, signed)
    if folder is not None:
        folder.most_bytes = service.store.most_file_bytes
    service.adapter_folder = folder
    try:
        for name, path in config.adapters.items():
            service.store.load(name, find_adapter(path))
        if config.releases:
            service.releases = ReleasesWatch(Path(config.releases), service.store)
    except BaseException:
        if service.engine is not None:
            service.engine.close(0)
        raise
    service.metrics.add(StatsCollector(base_name, service.store, service.engine))
    return service


def _decoder(directory: Path, config: ServeConfig, base_name: str, signed: SignedNames | None) -> ServiceState:
    template, adapter_templates = _templates(directory, config)
    engine = BatchEngine(
        directory,
        rows=config.rows,
        threads=config.threads,
        cache_budget_bytes=config.cache_bytes,
        queue=config.queue,
        prefill_tokens=config.prefill_tokens,
        step_timeout_s=config.limits.step_timeout_s,
    )
    if not engine.lays_out_adapters and config.layout != "float32":
        engine.close(0)
        raise ConfigError(
            f"adapter_dtype is {config.layout}, and {engine.graph_manifest.graph} takes float32 alone; leave "
            f"--adapter-dtype out, or write a graph that takes both with: fedlora export {directory} --profile kernel"
        )
    layout = config.layout if engine.lays_out_adapters else None
    return ServiceState(
        base=engine.base,
        base_name=base_name,
        tokenizer=engine.tokenizer,
        store=AdapterStore(
            engine.base,
            budget_bytes=config.adapter_bytes,
            layout=layout,
            signed=signed,
            read=partial(load_adapter, graph=engine.graph_manifest),
        ),
        limits=config.limits,
        keys=Keys(config.keys, admin=config.admin),
        metrics=Metrics(base_name),
        engine=engine,
        model_defaults=model_defaults(engine.base) if config.generation_config == "auto" else ModelDefaults(),
        template=template,
        adapter_templates=adapter_templates,
    )


def _templates(directory: Path, config: ServeConfig) -> tuple[ChatTemplate | None, AdapterTemplates]:
    """The template of the base, from the pack or the file that is named in its place, and those of adapters."""
    base = chat_settings_of(directory)
    if config.chat_template:
        base = replace(template_file(Path(config.chat_template)), special_tokens=base.special_tokens)
    given = {name: template_file(Path(path)) for name, path in config.chat_templates.items()}
    return template_of(base, now=datetime.now), AdapterTemplates(base.special_tokens, given=given)


def _encoder(directory: Path, config: ServeConfig, base_name: str, signed: SignedNames | None) -> ServiceState:
    """An encoder gives labels where it has a head, and embeddings where it has none."""
    if config.layout != "float32":
        raise ConfigError(
            f"adapter_dtype is {config.layout}, and {directory} is an encoder, which takes float32 alone; leave "
            "--adapter-dtype out"
        )
    shape = model_shape(read_object(directory / CONFIG, PackError, "a model's config.json"), str(directory / CONFIG))
    kind = Classifier if isinstance(shape, EncoderShape) and shape.labels else Embedder
    encoder = kind(directory, threads=config.threads, step_timeout_s=config.limits.step_timeout_s)
    return ServiceState(
        base=encoder.base,
        base_name=base_name,
        tokenizer=encoder.tokenizer,
        store=AdapterStore(
            encoder.base,
            budget_bytes=config.adapter_bytes,
            signed=signed,
            read=partial(load_adapter, graph=encoder.graph_manifest),
        ),
        limits=config.limits,
        keys=Keys(config.keys, admin=config.admin),
        metrics=Metrics(base_name),
        embedder=encoder if isinstance(encoder, Embedder) else None,
        classifier=encoder if isinstance(encoder, Classifier) else None,
    )
