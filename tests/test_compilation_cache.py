import jax
import pytest

from vit_jax import compilation_cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  names = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
  old = {name: getattr(jax.config, name) for name in names}
  jax.config.update(names[0], None)
  yield tmp_path
  for name, value in old.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_user_s_cache(unset):
  compilation_cache.use()
  folder = jax.config.jax_compilation_cache_dir
  assert folder == str(compilation_cache.folder())
  assert compilation_cache.folder().parent == unset / 'vit_jax'
  assert compilation_cache.folder().is_dir()


def test_another_processor_has_another_folder(unset, monkeypatch):
  here = compilation_cache.folder()
  monkeypatch.setattr(compilation_cache.platform, 'machine', lambda: 'another')
  assert compilation_cache.folder() != here


def test_the_user_s_own_choice_stays(unset):
  jax.config.update('jax_compilation_cache_dir', str(unset / 'own'))
  compilation_cache.use()
  assert jax.config.jax_compilation_cache_dir == str(unset / 'own')


def test_a_cache_that_cannot_be_written_is_left_out(unset, monkeypatch):
  (unset / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(unset / 'file'))
  compilation_cache.use()
  assert jax.config.jax_compilation_cache_dir is None
