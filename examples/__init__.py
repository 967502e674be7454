"""Programs that use Limner as an app would."""
