"""Fields that OpenAI or other servers know and this service does not do: what each may say here, and what to do instead.

A field is taken where its value asks for nothing: it is empty, or what the other server does without the field. Any other
value would change the answer, so the request is refused by the field's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# What clients send for what they do not use. 0 is none of them: it asks for no tokens, or for none of something.
EMPTY: tuple[object, ...] = (None, False, "", [], {})


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherField:
    """A field that is not done here."""

    nothing: tuple[object, ...]  # values that ask for nothing
    instead: str  # how to get what it asks for, or that nothing will

    def refused(self, value: object) -> str:
        """What is wrong with a value; empty where it asks for nothing."""
        return "" if is_one_of(value, self.nothing) else f"this service does not support it; {self.instead}"


def is_one_of(value: object, values: Iterable[object]) -> bool:
    """Whether it is among them, as JSON has it: true is not 1, and 1.0 is."""
    return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in values)


def _fields(names: str, *defaults: object, instead: str = "leave it out") -> dict[str, OtherField]:
    """Several fields that ask for nothing where they are empty or have one of these values."""
    return dict.fromkeys(names.split(), OtherField(nothing=(*EMPTY, *defaults), instead=instead))


def _unless(names: str, *defaults: object, instead: str = "leave it out") -> dict[str, OtherField]:
    """Several fields that ask for something unless they have one of these values: an empty one asks, too."""
    return dict.fromkeys(names.split(), OtherField(nothing=(None, *defaults), instead=instead))


OTHER_FIELDS: dict[str, OtherField] = {
    # Which adapter answers.
    **_fields(
        "lora_path lora_request lora_id lora_name lora_int_id lora adapter adapter_id adapter_name adapter_source "
        "adapter_parameters merged_adapters api_token",
        instead="name the adapter in model, or several with their weights in adapters",
    ),
    **_fields("pinned", instead="POST /v1/adapters/NAME/pin keeps an adapter in memory"),
    **_fields("is_3d_lora_weight base_model_name"),
    # Other names of what is done.
    **_fields("max_new_tokens max_length max_output_tokens n_predict", -1, instead="use max_tokens"),
    **_fields("n_cmpl best_of", 1, instead="use n"),
    **_fields("repeat_penalty", 1, instead="use repetition_penalty"),
    **_fields("ignore_eos_token", instead="use ignore_eos"),
    **_fields("min_new_tokens", 0, instead="use min_tokens"),
    **_fields("no_stop_trim", instead="use include_stop_str_in_output"),
    **_fields("stop_sequences stop_words", instead="use stop"),
    **_fields("n_probs top_n_tokens return_k_alternatives", 0, instead="use logprobs"),
    **_fields("return_full_text", instead="use echo, of /v1/completions"),
    **_unless("do_sample", instead="use temperature: 0 takes the likeliest token"),
    **_fields("messages", instead="use /v1/chat/completions"),
    **_fields("prompt", instead="use /v1/completions"),
    **_fields("input", instead="use /v1/embeddings; what is to be gone on from is the prompt or the messages"),
    **_fields(
        "inputs text content parameters sampling_params options", instead="write its fields into the body itself"
    ),
    **_fields(
        "extra_body", instead="a client puts what is in it into the body itself; write its fields into the body itself"
    ),
    # What the answer may look like.
    **_fields(
        "guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern "
        "structured_outputs structural_tag grammar grammar_lazy grammar_triggers regex ebnf schema format",
        instead="nothing here constrains the form of an answer",
    ),
    **_unless("json_schema", "", instead="nothing here constrains the form of an answer"),
    **_fields(
        "response_format",
        {"type": "text"},
        instead="the type text is, and nothing here constrains the form of an answer: ask for JSON in a message or prompt",
    ),
    **_fields("tools functions tool_prompt guideline"),
    **_fields("tool_choice function_call", "none", "auto"),
    # How tokens are chosen.
    **_fields("use_beam_search watermark watermarking"),
    **_fields("length_penalty", 1),
    **_fields("early_stopping num_beams", 1),
    **_fields("typical_p typical tfs tfs_z", 1),
    **_fields("mirostat mirostat_mode dynatemp_range xtc_probability dry_multiplier", 0),
    **_fields("mirostat_tau", 5),
    **_fields("mirostat_eta xtc_threshold", 0.1),
    **_fields("dynatemp_exponent", 1),
    **_fields("dry_base", 1.75),
    **_fields("dry_allowed_length", 2),
    **_fields("repeat_last_n dry_penalty_last_n dry_sequence_breakers"),
    **_unless("samplers"),
    **_fields("min_keep n_indent n_keep n_discard t_max_predict_ms n_cache_reuse epsilon_cutoff eta_cutoff top_a", 0),
    **_fields("no_repeat_ngram_size encoder_repetition_penalty penalty_alpha guidance_scale", 0, 1),
    **_fields(
        "allowed_token_ids bad_words bad_words_ids logits_processors custom_logit_processor custom_params vllm_xargs "
        "stop_regex repetition_detection"
    ),
    **_unless("thinking_token_budget thinking_budget_tokens", -1),
    **_fields("prediction"),
    # What the prompt is.
    **_fields("suffix", instead="the bases here fill in nothing; write the whole prompt"),
    **_fields("input_prefix input_suffix input_extra prompt_embeds input_embeds input_ids messages_json documents"),
    **_fields("truncate truncate_prompt_tokens truncation_side truncation", instead="shorten the text"),
    **_fields("padding", "do_not_pad"),
    **_unless("add_generation_prompt", True),
    **_fields("apply_chat_template continue_final_message chat_template chat_template_kwargs task"),
    **_fields("media_io_kwargs mm_processor_kwargs images_config max_dynamic_patch min_dynamic_patch"),
    **_fields("audio image_data audio_data video_data modalities use_audio_in_video"),
    # What is told beside the answer.
    **_unless("prompt_logprobs"),
    **_fields("logprob_token_ids return_tokens_as_token_ids"),
    **_fields("return_token_ids return_prompt_token_ids return_tokens return_token_offsets return_prompt_text"),
    **_fields(
        "return_hidden_states return_routed_experts return_cached_tokens_details return_meta_info return_progress"
    ),
    **_fields("details decoder_input_details timings_per_token post_sampling_probs response_fields"),
    **_fields("routed_experts_prompt_start routed_experts_start_len", 0),
    **_unless("return_mm_kwargs", True),
    **_fields("include_obfuscation", instead="leave it out, or send false"),
    **_fields("stream_interval", 1),
    **_fields("sse_ping_interval"),
    # Thinking.
    **_unless("include_reasoning separate_reasoning stream_reasoning", True),
    **_fields("reasoning_format", "none"),
    **_unless(  # false asks a model that thinks to answer at once
        "reasoning reasoning_effort reasoning_control thinking think enable_thinking",
        "",
        {},
        [],
        instead="chat_template_kwargs gives the template of a chat its variables",
    ),
    # Of embeddings.
    **_unless("use_activation normalize"),
    **_unless("embd_normalize", instead="use normalize, of /v1/embeddings"),
    **_fields("embed_dtype", "float32"),
    **_fields("endianness", "native", "little"),
    **_fields("additional_data input_type instruction"),
    **_unless("add_special_tokens", True),
    # Where and when it is done.
    **_fields("priority", 0, instead="requests are answered in their order"),
    **_fields("cache_salt", instead="beginnings of prompts are cached for all keys alike"),
    **_unless("cache_prompt", True),
    **_fields("id_slot", -1),
    **_fields("request_id rid", instead="the answer's id is chosen here"),
    **_fields("session_id session_params extra_key custom_labels ngram_corpus_id keep_alive"),
    **_fields("kv_transfer_params ec_transfer_params bootstrap_host bootstrap_port bootstrap_room"),
    **_fields("routed_dp_rank disagg_prefill_dp_rank data_parallel_rank"),
    **_fields("moderation web_search_options prompt_cache_options"),
    **_fields("prompt_cache_retention", "in_memory"),
    **_fields("verbosity", "medium"),
    **_unless("echo", False),  # of chats
}

# Fields of a message that would change what is answered, where the chat template does not know them.
OTHER_MESSAGE_FIELDS: dict[str, OtherField] = {
    **_fields("prefix partial continue", instead="continue_final_message goes on with the last message"),
    **_fields(
        "image images image_url video videos video_url audio_url input_audio file files attachments "
        "experimental_attachments",
        instead="this service reads text",
    ),
    **_fields("tools functions documents", instead="give it as a field of the request"),
}
